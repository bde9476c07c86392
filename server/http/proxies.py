"""Headers of reverse proxies (X-Forwarded-*), which only trusted proxies may set. Knows addresses; no routes."""

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from server.api.client import parsed


class TrustedProxies:
    """Addresses and networks of proxies, such as "127.0.0.1" and "10.0.0.0/8"."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ip_network(network) for network in networks]

    def __contains__(self, address: object) -> bool:
        found = parsed(str(address))
        return found is not None and any(found in network for network in self._networks)


class ProxyMiddleware:
    """Takes client and scheme of a request from the headers of trusted proxies, and removes such headers of others."""

    def __init__(self, app: ASGIApp, networks: tuple[str, ...] = ()) -> None:
        self._app = app
        self._trusted = TrustedProxies(networks)
        self._forwarded = cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, app), list(networks)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host, port = scope.get("client") or ("", 0)
        if host in self._trusted:
            scope = dict(scope) | {"client": (str(parsed(host)), port)}  # uvicorn does not know ::ffff:127.0.0.1
            await self._forwarded(scope, receive, send)
        else:
            headers = [(name, value) for name, value in scope["headers"] if not name.startswith(b"x-forwarded-")]
            await self._app(dict(scope) | {"headers": headers}, receive, send)
