"""Headers of reverse proxies (X-Forwarded-*), which only trusted proxies may set. Knows addresses; no routes."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.client import parsed
from server.api.public_address import PREFIX, SCOPE_KEY, PublicAddress

FORWARDED = "x-forwarded-"
KEPT = ("x-forwarded-host", "x-forwarded-prefix")  # for the check of the host, and for what is mounted
SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class TrustedProxies:
    """Addresses and networks of proxies, such as "127.0.0.1" and "10.0.0.0/8"."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ip_network(network) for network in networks]

    def __contains__(self, address: object) -> bool:
        found = parsed(str(address))
        return found is not None and any(found in network for network in self._networks)

    def client(self, forwarded: str) -> str | None:
        """Return the last address in X-Forwarded-For that is not a proxy's, or the first if all are; None if empty.

        Each proxy appends the address that it sees, so that what a client writes itself comes first.
        """
        addresses = [_without_port(part.strip()) for part in forwarded.split(",") if part.strip()]
        return next((address for address in reversed(addresses) if address not in self), next(iter(addresses), None))


class ProxyMiddleware:
    """Sets the client and the public address of each request, from the headers of trusted proxies if it has any.

    It replaces these headers by at most one X-Forwarded-Host and one X-Forwarded-Prefix, and removes those of others.

    Args:
        networks: addresses and networks of trusted proxies.
        public_url: the server's address for all clients; None to take it from each request.
    """

    def __init__(self, app: ASGIApp, networks: tuple[str, ...] = (), public_url: PublicAddress | None = None) -> None:
        self._app, self._trusted, self._public_url = app, TrustedProxies(networks), public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope = self._resolved(scope)
        await self._app(scope, receive, send)

    def _resolved(self, scope: Scope) -> Scope:
        peer, port = scope.get("client") or ("", 0)
        forwarded = _forwarded(scope) if peer in self._trusted else {}
        if client := self._trusted.client(forwarded.get("x-forwarded-for", "")):
            peer, port = client, 0
        address = self._public_url or _address(scope, forwarded)
        kept = {name: forwarded[name] for name in KEPT if name in forwarded} | {"x-forwarded-prefix": address.prefix}
        headers = [item for item in scope["headers"] if not item[0].startswith(FORWARDED.encode())]
        headers += [(name.encode(), value.encode("latin-1")) for name, value in kept.items() if value]
        scheme = address.scheme.replace("http", "ws") if scope["type"] == "websocket" else address.scheme
        return dict(scope) | {"client": (peer, port), "scheme": scheme, "headers": headers, SCOPE_KEY: address}


def _forwarded(scope: Scope) -> dict[str, str]:
    """Return the proxies' headers. Of a chain of proxies, each may have added a value: the first one's counts.

    X-Forwarded-For keeps all its addresses; prefixes are put together, as the proxies have removed one after the other.
    """
    values: dict[str, list[str]] = {}
    for raw, value in scope["headers"]:
        if (name := raw.decode("latin-1")).startswith(FORWARDED):
            values.setdefault(name, []).extend(part.strip() for part in value.decode("latin-1").split(","))
    found = {name: parts[0] for name, parts in values.items()}
    prefix = "".join(part.rstrip("/") for part in values.get("x-forwarded-prefix", ()))
    found["x-forwarded-prefix"] = prefix if PREFIX.fullmatch(prefix) else ""
    found["x-forwarded-for"] = ",".join(values.get("x-forwarded-for", ()))
    return found


def _address(scope: Scope, forwarded: Mapping[str, str]) -> PublicAddress:
    """Return the address that a client has called."""
    asked = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    return PublicAddress(
        SCHEMES.get(forwarded.get("x-forwarded-proto", "").lower()) or SCHEMES[scope["scheme"]],
        forwarded.get("x-forwarded-host") or asked or "localhost",
        forwarded.get("x-forwarded-prefix", ""),
    )


def _without_port(address: str) -> str:
    """Return the address in 192.0.2.1:80 or [2001:db8::1]:80, and others as they are."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address
