"""uvicorn's WebSockets, without unread pongs in memory. Knows frames; no routes."""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket connection that bounds the memory of a client which sends pings and does not read."""

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # drop the pong; RFC 6455, 5.5.3, asks only for the last one
