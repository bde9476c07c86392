"""Databases of the job store: SQLite and PostgreSQL behind one interface."""
