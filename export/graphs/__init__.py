"""Traceable wrappers of the three graphs."""
