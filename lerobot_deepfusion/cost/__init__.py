"""What a policy takes before it runs: its contract in words, parameters and memory."""
