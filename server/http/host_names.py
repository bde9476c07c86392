"""Names by which requests may call the server, in their header Host. Knows names and addresses; no requests."""

import re
from dataclasses import dataclass
from ipaddress import ip_address

ALWAYS = ("localhost", "127.0.0.1", "[::1]")
NAME = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,252}[a-z0-9_])?)\.?(?::[0-9]{0,5})?", re.IGNORECASE)


def parse_host(text: str) -> str | None:
    """Return the name in a Host header in its one spelling, without its port; None if the header is malformed."""
    match = NAME.fullmatch(text)
    if match is None:
        return None
    name = match[1].lower()
    if not name.startswith("["):
        return name
    try:
        return f"[{ip_address(name[1:-1])}]"
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class HostNames:
    """Names that requests may use.

    A page of another site can make its own name resolve to 127.0.0.1 (DNS rebinding). For the browser, this server then
    belongs to that site. Only the name tells such requests from others.

    Attributes:
        bound: address that the server listens on.
        public: public names of the server, with or without ports, which are ignored.
    """

    bound: str = "127.0.0.1"
    public: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches the server."""
        return ip_address(self.bound).is_loopback

    @property
    def valid(self) -> tuple[str, ...] | None:
        """The valid names; None if all are."""
        if not self.public and not self.is_loopback:
            return None
        bound = f"[{self.bound}]" if ":" in self.bound else self.bound
        return tuple(dict.fromkeys(name for each in (*ALWAYS, bound, *self.public) if (name := parse_host(each))))
