"""Large answers in pieces, so that a client which does not read holds one piece in memory. Knows no routes.

uvicorn copies what it is given into the connection's buffer, and waits for the client only before the next message.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE = 1 << 16  # bytes, or characters of a text; as asyncio's buffer of a connection


class PiecesMiddleware:
    """Sends the body of each response in pieces, between which uvicorn waits for the client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if message["type"] != "http.response.body" or len(body) <= PIECE:
                await send(message)
                return
            view = memoryview(body)  # its slices are not copies
            for start in range(0, len(view), PIECE):
                is_last = start + PIECE >= len(view)
                more_body = not is_last or message.get("more_body", False)
                await send({"type": message["type"], "body": view[start : start + PIECE], "more_body": more_body})

        await self._app(scope, receive, send_in_pieces if scope["type"] == "http" else send)
