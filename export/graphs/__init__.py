"""The graphs as traceable modules: one for each of the three models, and a small one for guidance."""
