"""uvicorn's HTTP/1.1, without tracebacks for bytes that are not HTTP. Knows bytes and connections; no routes.

It is built on h11: an installed httptools, which accepts more, is not taken.
"""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class HttpProtocol(H11Protocol):
    """HTTP connection that closes after bytes which are not HTTP.

    uvicorn's own answer to a broken body passes through h11, which then refuses the application's: 70 lines of
    traceback in the log for 100 bytes from anybody.
    """

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(BAD_REQUEST)
        self.transport.close()
