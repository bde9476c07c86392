"""Endpoints of other servers, so that their clients work unchanged. One module each, over `server.api.submit`."""
