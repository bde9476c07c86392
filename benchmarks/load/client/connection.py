"""A keep-alive HTTP connection with a deadline for each answer. Knows no endpoints.

It uses sockets of the standard library, which are those of gevent where Locust runs.
"""

import http.client
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Self
from urllib.parse import urlsplit

PORTION = 1 << 16  # bytes
MAX_BODY = 1 << 29  # bytes; four uncompressed images of 4096x4096 in base64 have half of them
STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
STALE_SECONDS = 1.0  # after which a failure is no idle connection that was closed, but a request that was dropped


class AnswerTooLarge(http.client.HTTPException):
    """An answer with more than MAX_BODY bytes, which would fill this machine's memory."""


class Reply:
    """An answer whose body is read until a deadline.

    Attributes:
        headers: names in lower case.
        arrived: time.monotonic() at which the headers had arrived.
    """

    def __init__(self, response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.arrived = time.monotonic()
        self._response, self._sock, self._deadline = response, sock, deadline

    def read(self) -> bytes:
        """Return the body.

        Raises:
            TimeoutError: the deadline is over.
            http.client.IncompleteRead: the server closed the connection too early.
            AnswerTooLarge: the body does not end within MAX_BODY bytes.
        """
        return b"".join(self._portions())

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the body as they arrive, without their ends. Raises what `read` raises."""
        begun: list[bytes] = []
        for portion in self._portions():
            first, *others = portion.split(b"\n")
            begun.append(first)
            for other in others:
                yield b"".join(begun)
                begun = [other]
        if last := b"".join(begun):
            yield last

    @property
    def is_read(self) -> bool:
        """True if the connection can be used again."""
        return self._response.isclosed()

    def _portions(self) -> Iterator[bytes]:
        """Yield the body in pieces as they arrive; none takes longer than the deadline."""
        size = 0
        while portion := self._within_deadline().read1(PORTION):
            size += len(portion)
            if size > MAX_BODY:
                raise AnswerTooLarge(f"the answer has more than {MAX_BODY >> 20} MiB")
            yield portion
        if self._response.length:
            raise http.client.IncompleteRead(b"", self._response.length)
        self._response.close()  # read1 leaves it open at its end, and then the connection cannot be used again

    def _within_deadline(self) -> http.client.HTTPResponse:
        if self._sock.fileno() >= 0:  # not closed already, as after the last byte of an answer that closes it
            self._sock.settimeout(remaining(self._deadline))
        return self._response


class Connection:
    """A connection to a server; one request at a time. It connects when a request needs it."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"the server's address must be http://HOST:PORT or https://HOST, got {url!r}")
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._http = kind(address.hostname, address.port)
        self._root = address.path.rstrip("/")
        self._reply: Reply | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float) -> Reply:
        """Send a request and return its answer, whose body is still to be read.

        Args:
            path: below the path of the server's address.
            deadline: time.monotonic() until which the whole answer must have arrived.

        Raises:
            OSError, http.client.HTTPException: there is no answer. TimeoutError is an OSError.
        """
        if self._reply is not None and not self._reply.is_read:
            self.close()  # an answer that was given up
        is_reused, sent = self._http.sock is not None, time.monotonic()
        try:
            return self._exchange(method, path, body, headers, deadline)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not (is_reused and isinstance(error, STALE) and time.monotonic() - sent < STALE_SECONDS):
                raise
        return self.send(method, path, body, headers, deadline)  # the server had closed the idle connection

    def close(self) -> None:
        self._reply = None
        self._http.close()

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> Reply:
        self._http.timeout = remaining(deadline)
        if self._http.sock is not None:
            self._http.sock.settimeout(self._http.timeout)
        self._http.request(method, self._root + path, body, dict(headers))
        sock = self._http.sock
        assert sock is not None
        sock.settimeout(remaining(deadline))
        self._reply = Reply(self._http.getresponse(), sock, deadline)
        return self._reply


def remaining(deadline: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError: it is over."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the deadline is over")
    return seconds
