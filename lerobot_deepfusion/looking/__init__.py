"""Pictures of what the policy works with."""
