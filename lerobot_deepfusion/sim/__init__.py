"""Simulators and demonstrations, which the demos need and the policy does not."""
