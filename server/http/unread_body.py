"""Large bodies of requests that are answered before they are read. Knows messages; not what is answered.

A connection that is closed with unread bytes is reset, and the reset may overtake the answer: behind nginx, which asks
for connections to be closed, a 401 or 413 would become a 502. So the rest of the body is read first, as nginx does for
its own clients (`lingering_close`).
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGE = 1 << 18  # bytes of a body; the system's buffers have room for smaller ones
MOST = 96 << 20  # bytes that are read and dropped
SECONDS = 5.0  # for all of them
SILENCE = 0.2  # seconds without a byte after which the answer is sent
MAX_DIGITS = 18


class UnreadBodyMiddleware:
    """Reads what is left of a large body before the first byte of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _declared(scope) < LARGE:
            await self._app(scope, receive, send)
            return
        body = _Body(receive, is_on_its_way=_header(scope, b"expect").lower() != b"100-continue")

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drop_rest()
            await send(message)

        await self._app(scope, body.receive, send_after_body)


class _Body:
    """The body of a request, and whether all of it has been received.

    Args:
        is_on_its_way: False if the client sends it only once it is asked for, by the first `receive`.
    """

    def __init__(self, receive: Receive, *, is_on_its_way: bool) -> None:
        self._receive, self._is_on_its_way = receive, is_on_its_way
        self._has_ended = False

    async def receive(self) -> Message:
        self._is_on_its_way = True
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._has_ended = True
        return message

    async def drop_rest(self) -> None:
        """Receive what is left, within limits, and drop it."""
        if not self._is_on_its_way:
            return
        clock = asyncio.get_running_loop().time
        dropped, until = 0, clock() + SECONDS
        while not self._has_ended and dropped < MOST and clock() < until:
            try:
                async with asyncio.timeout(SILENCE):
                    message = await self.receive()
            except TimeoutError:
                return
            dropped += len(message.get("body", b""))


def _declared(scope: Scope) -> int:
    """Return the length that a request declares for its body; 0 if it declares none."""
    text = _header(scope, b"content-length")
    return int(text) if text.isdigit() and len(text) <= MAX_DIGITS else 0


def _header(scope: Scope, wanted: bytes) -> bytes:
    """Return the value of a header; empty if there is none."""
    value: bytes = next((value for name, value in scope["headers"] if name == wanted), b"")
    return value
