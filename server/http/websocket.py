"""uvicorn's WebSockets, without unread pongs in memory and tracebacks for text that is not UTF-8.

Knows frames; no routes.
"""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server.http.connections import ConnectionConfig

INVALID_TEXT = 1007  # close code


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket connection that is safe from pings of a client which does not read, and from invalid text."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        assert isinstance(self.config, ConnectionConfig)
        self.config.connections.remove(self.client[0] if self.client else "")

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # drop the pong; RFC 6455, 5.5.3, asks only for the last one

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
