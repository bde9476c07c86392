"""Origins of web pages, as browsers write them. Knows texts; no requests."""

import re
from urllib.parse import urlsplit

ANY = "*"
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
PORTS = {"http": ":80", "https": ":443"}  # that browsers leave out


def parse_origin(text: str) -> str:
    """Return an origin as browsers write it; also `*`.

    Raises:
        ValueError: the text is something else.
    """
    origin = text.lower().removesuffix("/")
    if origin == ANY:
        return origin
    if not ORIGIN.fullmatch(origin):
        raise ValueError(f"must be origins such as https://app.example.com, without paths, or *; got {text!r}")
    return origin.removesuffix(PORTS.get(urlsplit(origin).scheme, "/"))
