"""The web page: a mount for static files, which use the public API like any client."""
