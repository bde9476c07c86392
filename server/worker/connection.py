"""The worker's end of the socket to the server: one thread reads, one writes.

Knows messages; not images.
"""

import queue
import socket
import threading
from collections.abc import Callable

from server.worker import messages
from server.worker.messages import FromWorker, ToWorker, decode_to_worker, encode_frame

FLUSH_TIMEOUT = 5.0  # seconds, for a server that does not read


class ServerConnection:
    """Messages to and from the server. A slow reader there does not hold up `send`.

    Args:
        on_close: called in the reading thread when the server has closed its end.
    """

    def __init__(self, sock: socket.socket, on_close: Callable[[], object]) -> None:
        self._sock, self._on_close = sock, on_close
        self._inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[FromWorker | threading.Event | None] = queue.SimpleQueue()
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
        """Wait until what was sent has left this process, FLUSH_TIMEOUT at most."""
        flushed = threading.Event()
        self._outbox.put(flushed)
        flushed.wait(FLUSH_TIMEOUT)

    @property
    def has_messages(self) -> bool:
        return not self._inbox.empty()

    def receive(self) -> list[ToWorker]:
        """Wait for a message; return it with all that came after it."""
        received = [self._inbox.get()]
        while self.has_messages:
            received.append(self._inbox.get())
        return received

    def put(self, message: ToWorker) -> None:
        """Add a message as if the server had sent it."""
        self._inbox.put(message)

    def _read(self) -> None:
        try:
            with self._sock.makefile("rb") as stream:
                while header := stream.read(messages.LENGTH.size):
                    (length,) = messages.LENGTH.unpack(header)
                    self.put(decode_to_worker(stream.read(length)))
        finally:  # also in the middle of a frame
            self._on_close()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            if isinstance(message, threading.Event):
                message.set()
                continue
            try:
                self._sock.sendall(encode_frame(message))
            except OSError:
                return  # the reader sees it too
