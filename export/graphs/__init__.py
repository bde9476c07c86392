"""The three graphs as traceable modules."""
