"""The worker's end of the socket to the server: one thread reads, one writes.

Knows messages; not images.
"""

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from server.worker import messages
from server.worker.messages import FromWorker, ToWorker, decode_to_worker, encode_frame

FLUSH_TIMEOUT = 5.0  # seconds, for a server that does not read
MAX_UNSENT = 32  # messages; images have megabytes, and a stopped server must not fill the worker's memory


class ServerConnection:
    """Messages to and from the server. `send` waits only while MAX_UNSENT messages are not sent.

    Args:
        on_message: called in the reading thread with each message.
        on_close: called in the reading thread when the server has closed its end.
    """

    def __init__(
        self, sock: socket.socket, on_message: Callable[[ToWorker], None], on_close: Callable[[], object]
    ) -> None:
        self._sock, self._on_message, self._on_close = sock, on_message, on_close
        self._outbox: queue.Queue[FromWorker | threading.Event | None] = queue.Queue(MAX_UNSENT)
        self._writer = threading.Thread(target=self._write, name="writer")

    def start(self) -> None:
        self._writer.start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()

    def close(self) -> None:
        """Write what was sent, then stop writing."""
        self._outbox.put(None)
        self._writer.join()

    def send(self, message: FromWorker) -> None:
        self._outbox.put(message)

    def flush(self) -> None:
        """Wait until what was sent has left this process, about FLUSH_TIMEOUT at most."""
        flushed = threading.Event()
        with suppress(queue.Full):
            self._outbox.put(flushed, timeout=FLUSH_TIMEOUT)
            flushed.wait(FLUSH_TIMEOUT)

    def _read(self) -> None:
        try:
            with self._sock.makefile("rb") as stream:
                while header := stream.read(messages.LENGTH.size):
                    (length,) = messages.LENGTH.unpack(header)
                    self._on_message(decode_to_worker(stream.read(length)))
        finally:  # also in the middle of a frame
            self._on_close()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            if isinstance(message, threading.Event):
                message.set()
                continue
            with suppress(OSError):  # the reader sees it too
                self._sock.sendall(encode_frame(message))
