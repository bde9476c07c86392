"""uvicorn's WebSockets, without unread data in memory and tracebacks for text that is not UTF-8.

Knows frames; no routes.
"""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.protocol import State

from server.http.connections import ConnectionConfig
from server.http.pieces import PIECE

INVALID_TEXT = 1007  # close code


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket connection that is safe from clients which do not read, and from invalid text.

    A large text is sent in fragments, between which `send` waits for the client. Fragments of two messages must not
    mix, but the protocol may send a ping or a close frame between them.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._sending = asyncio.Lock()
        self._pong = b""  # for when the client reads again

    async def send(self, message: Any) -> None:
        async with self._sending:
            text = message.get("text") if message["type"] == "websocket.send" else None
            if text is not None and len(text) > PIECE and self.handshake_complete and not self.close_sent:
                await self._send_fragments(text)
            else:
                await super().send(message)

    async def _send_fragments(self, text: str) -> None:
        try:
            for start in range(0, len(text), PIECE):
                await self.writable.wait()
                if self.disconnected:
                    raise ClientDisconnected
                data, is_last = text[start : start + PIECE].encode(), start + PIECE >= len(text)
                if start == 0:
                    self.conn.send_text(data, fin=False)
                else:
                    self.conn.send_continuation(data, fin=is_last)
                self.transport.write(b"".join(self.conn.data_to_send()))
        except InvalidState as error:  # closed in the meantime
            raise ClientDisconnected from error
        except asyncio.CancelledError:  # nothing can follow half a message
            self.transport.abort()
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        assert isinstance(self.config, ConnectionConfig)
        self.config.connections.remove(self.client[0] if self.client else "")

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self._pong = b"".join(self.conn.data_to_send())  # RFC 6455, 5.5.3, asks only for the last one

    def resume_writing(self) -> None:
        if self._pong and self.conn.state is State.OPEN:
            self.transport.write(self._pong)
        self._pong = b""
        super().resume_writing()

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text" and not self.close_sent:
                b"".join(self.frames).decode()
        except UnicodeDecodeError:  # uvicorn closes the connection, too, but logs a traceback
            self.frames = []
            self.conn.send_close(INVALID_TEXT)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()
