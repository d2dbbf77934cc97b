"""The policy at work for a robot elsewhere."""
