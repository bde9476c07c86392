"""A network namespace whose links to this machine can be cut. Knows addresses; no servers.

Each link is a pair of virtual interfaces. A server on this machine listens on an address of the loopback interface,
which the namespace reaches through one link only. Cutting a link drops packets without a word, as a failed switch does.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from typing import Self

BENCHMARKING = "198.18"  # 198.18.0.0/15 is for benchmarks: RFC 2544


class Network:
    """A namespace with a link to each of several addresses.

    Attributes:
        prefix: command in front of one that is to run in the namespace.
        addresses: of this machine, one per link; servers that the namespace needs listen there.
        inside: of the namespace, one per link.
    """

    def __init__(self, links: int) -> None:
        self._id = secrets.token_hex(3)
        self._name = f"zimage-{self._id}"
        self.prefix: Sequence[str] = ("ip", "netns", "exec", self._name)
        subnet = secrets.randbelow(250)
        self.addresses = [f"{BENCHMARKING}.{subnet}.{16 * link + 9}" for link in range(links)]
        ends = [tuple(f"{BENCHMARKING}.{subnet}.{16 * link + host}" for host in (1, 2)) for link in range(links)]
        self._outside, self.inside = [end[0] for end in ends], [end[1] for end in ends]

    @staticmethod
    def missing() -> str | None:
        """Return what is missing on this machine; None if namespaces can be made."""
        if os.geteuid() != 0:
            return "root's rights"
        if shutil.which("ip") is None:
            return "the program ip (Debian's package iproute2)"
        probe = f"zimage-{secrets.token_hex(3)}"
        if _run("ip", "netns", "add", probe, check=False):
            return "the right to make network namespaces (CAP_SYS_ADMIN and CAP_NET_ADMIN)"
        _run("ip", "netns", "delete", probe)
        return None

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self._name)
        try:
            _run(*self.prefix, "ip", "link", "set", "lo", "up")
            for link in range(len(self.addresses)):
                self._connect(link)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for address in self.addresses:
            _run("ip", "address", "delete", f"{address}/32", "dev", "lo", check=False)
        for link in range(len(self.addresses)):  # the other end goes with it
            _run("ip", "link", "delete", self._interface(link), check=False)
        _run("ip", "netns", "delete", self._name, check=False)

    def cut(self, link: int) -> None:
        """Drop all packets of a link."""
        _run("ip", "link", "set", self._interface(link), "down")

    def mend(self, link: int) -> None:
        """Carry packets again."""
        _run("ip", "link", "set", self._interface(link), "up")

    def _connect(self, link: int) -> None:
        inner, address, ours = f"{self._interface(link)}i", self.addresses[link], self._outside[link]
        _run("ip", "address", "add", f"{address}/32", "dev", "lo")
        _run("ip", "link", "add", self._interface(link), "type", "veth", "peer", "name", inner, "netns", self._name)
        _run("ip", "address", "add", f"{ours}/30", "dev", self._interface(link))
        _run("ip", "link", "set", self._interface(link), "up")
        _run(*self.prefix, "ip", "address", "add", f"{self.inside[link]}/30", "dev", inner)
        _run(*self.prefix, "ip", "link", "set", inner, "up")
        _run(*self.prefix, "ip", "route", "add", f"{address}/32", "via", ours)

    def _interface(self, link: int) -> str:
        return f"z{self._id}{link}"


def _run(*command: str, check: bool = True) -> int:
    """Run a command; return its status. Raises RuntimeError if it fails and `check` is on."""
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.returncode
