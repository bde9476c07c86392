"""The server's address as clients see it, from which all URLs in answers are made. Knows URLs; no routes."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:  # settings are read before the worker starts, and starlette takes longer
    from starlette.requests import HTTPConnection

SCOPE_KEY = "zimage.public_address"  # in the scope of a request; `server.http.proxies.ProxyMiddleware` sets it
PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
URL = re.compile(r"https?://[^/?#@\s]+" + PREFIX.pattern + "/?", re.IGNORECASE)
DEFAULT_PORT = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """Address of the server's root.

    Attributes:
        scheme: "http" or "https".
        host: name or address, with the port unless it is the scheme's.
        prefix: path of the root, such as "/generate"; empty without one.
    """

    scheme: str
    host: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address in a URL such as https://example.com/generate.

        Raises:
            ValueError: it is no such URL.
        """
        if not URL.fullmatch(text):
            raise ValueError(f"must be a URL such as https://example.com or https://example.com/path; got {text!r}")
        parts = urlsplit(text)
        return cls(parts.scheme, without_default_port(parts.netloc.lower(), parts.scheme), parts.path.rstrip("/"))

    @property
    def root(self) -> str:
        """The URL of the root, which ends with a slash."""
        return f"{self.scheme}://{self.host}{self.prefix}/"


def address_of(connection: "HTTPConnection") -> PublicAddress:
    """Return the server's address for the client of a request or WebSocket."""
    address: PublicAddress = connection.scope[SCOPE_KEY]
    return address


def public_root(connection: "HTTPConnection") -> str:
    """Return the URL of the server's root for a client: http or https, also for a WebSocket; it ends with a slash."""
    return address_of(connection).root


def without_default_port(host: str, scheme: str) -> str:
    """Return a host as browsers write it in an origin."""
    return host.removesuffix(DEFAULT_PORT.get(scheme, "/"))
