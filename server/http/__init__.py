"""Sockets and protocols under the application."""
