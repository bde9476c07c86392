"""HTTP/1.1 as uvicorn speaks it, but for what reaches no application: bytes that are no request, and silence.

Knows bytes and connections; no routes. h11 is named, so that an installed httptools, which forgives more, is not taken.
"""

import asyncio
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api import errors
from server.api.request_id import HEADER, new_id
from server.http.write_timeout import WriteTimeoutProtocol

HEAD_SECONDS = 20.0  # for a request's head to arrive, from the connection's or the head's beginning


class HttpProtocol(WriteTimeoutProtocol, H11Protocol):
    """Answers what is no HTTP in OpenAI's shape, and closes connections that ask for nothing."""

    _head: asyncio.TimerHandle | None = None  # ends the wait for one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            # not through h11, which then would let the request's own answer, on its way to nobody, end in an exception
            self.transport.write(last_word(errors.ApiError(400, msg, code="invalid_http")))
        self.transport.close()

    def _watch(self) -> None:
        """Waits for a head while one is due, and for no longer than that."""
        is_due = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if is_due and self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not is_due and self._head is not None:
            self._head.cancel()
            self._head = None


def last_word(error: errors.ApiError) -> bytes:
    """The answer after which a connection closes, as bytes."""
    body = bytes(error.response().body)
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"{HEADER}: {new_id()}",
        "connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + body
