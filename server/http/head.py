"""Answers to HEAD, wherever there is an answer to GET. Knows methods; no routes."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _Answered(BaseException):
    """Ends an endpoint after its headers; not an Exception, which a handler of errors would answer."""


class HeadMiddleware:
    """Answers HEAD with the status and the headers of GET.

    A stream is never started: some streams cancel their job when the client leaves, and HEAD must not change anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_headers(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body", "body": b""})
                raise _Answered

        try:
            await self._app(dict(scope) | {"method": "GET"}, receive, send_headers)
        except* _Answered:
            pass
