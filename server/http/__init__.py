"""uvicorn: sockets, protocols, timeouts and checks of requests below the application."""
