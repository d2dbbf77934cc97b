"""What the demos need and the policy does not: fast simulators and scripted experts."""
