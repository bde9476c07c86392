"""Answers to HEAD, wherever there is an answer to GET. Knows methods; no routes."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_BODY: Message = {"type": "http.request", "body": b"", "more_body": False}
EVENT_STREAM = b"text/event-stream"
DISCONNECT: Message = {"type": "http.disconnect"}


class HeadMiddleware:
    """Answers HEAD with the status and the headers of GET.

    A stream ends before it begins: to follow some jobs and to leave cancels them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._answer(scope, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, send: Send) -> None:
        messages, answered = [NO_BODY], asyncio.Event()

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await answered.wait()
            return DISCONNECT

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()
                if _is_stream(message):
                    await asyncio.Future()  # until the disconnect cancels the stream

        await self._app(dict(scope) | {"method": "GET"}, receive, send_headers)


def _is_stream(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in start["headers"])
