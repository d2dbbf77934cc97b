"""Harnesses of others that judge a policy: what of ours they are given."""
