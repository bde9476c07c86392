"""Sockets, protocols and timeouts below the application."""
