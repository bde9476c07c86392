"""A keep-alive HTTP connection with a deadline for each answer. Knows no endpoints.

It uses sockets of the standard library, which are those of gevent where Locust runs.
"""

import http.client
import io
import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

PORTION = 1 << 16  # bytes
MAX_BODY = 1 << 29  # bytes; four uncompressed images of 4096x4096 in base64 have half of them
STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
STALE_SECONDS = 1.0  # a later failure is a request that was dropped, not an idle connection that was closed


class AnswerTooLarge(http.client.HTTPException):
    """An answer with more than MAX_BODY bytes, which would fill this machine's memory."""


class Reply:
    """An answer whose body is read until the deadline of its request.

    Attributes:
        headers: names in lower case.
        arrived: time.monotonic() at which the headers had arrived.
    """

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.arrived = time.monotonic()
        self._response = response

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
        """Yield the body in pieces as they arrive."""
        size = 0
        while portion := self._response.read1(PORTION):
            size += len(portion)
            if size > MAX_BODY:
                raise AnswerTooLarge(f"the answer has more than {MAX_BODY >> 20} MiB")
            yield portion
        if self._response.length:
            raise http.client.IncompleteRead(b"", self._response.length)
        self._response.close()  # read1 leaves it open at its end, and then the connection cannot be used again


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
        self._http.timeout = _remaining(deadline)
        if self._http.sock is not None:
            self._http.sock.settimeout(self._http.timeout)
        self._http.response_class = partial(_TimedResponse, deadline)  # type: ignore[assignment]
        self._http.request(method, self._root + path, body, dict(headers))
        self._reply = Reply(self._http.getresponse())
        return self._reply


class _TimedResponse(http.client.HTTPResponse):
    """A response whose headers and body must arrive before a deadline, however small its packets are."""

    def __init__(self, deadline: float, sock: socket.socket, **options: Any) -> None:
        super().__init__(sock, **options)
        self.fp = io.BufferedReader(_TimedStream(self.fp.detach(), sock, deadline))


class _TimedStream(io.RawIOBase):
    """The stream of a socket that raises TimeoutError once its deadline is over.

    The timeout of a socket alone begins again with every packet.
    """

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._stream, self._sock, self._deadline = stream, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_remaining(self._deadline))
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _remaining(deadline: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError: it is over."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the deadline is over")
    return seconds
