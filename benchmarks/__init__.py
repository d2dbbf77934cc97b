"""Measurements that a user can repeat; each is a module to run with `python -m`."""
