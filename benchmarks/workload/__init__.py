"""Requests of clients, their times, and the figures of the answers. Knows no HTTP; simulations use it too."""
