"""WebSockets as uvicorn speaks them, but for requests with a body, text that is none, and clients that do not read.

Knows frames; no routes.
"""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server.api import errors
from server.http.protocol import last_word
from server.http.write_timeout import WriteTimeoutProtocol

INVALID_TEXT = 1007  # close code: bytes that are no UTF-8


class WebSocketProtocol(WriteTimeoutProtocol, WebSocketsSansIOProtocol):
    """Answers what is no handshake, closes on text that is none, and sends pongs only to those who read them."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            reason = "A request for a WebSocket has no body."
            self.transport.write(last_word(errors.ApiError(400, reason, code="invalid_http")))
            self.transport.close()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # the pong; a flood of them would wait in memory

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_text(b"".join(self.frames)):
            self.frames = []
            self.conn.send_close(INVALID_TEXT)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
