"""Workers in threads, over a socket whose other end tests have."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from engine.errors import DeviceError
from server.worker.messages import LENGTH, FromWorker, Stop, ToWorker, decode_from_worker, encode_frame
from server.worker.worker import Worker

SECONDS = 20.0  # after which a test fails


class WorkerSocket:
    """Sends messages to a worker and receives its messages."""

    def __init__(self, sock: socket.socket, worker: Worker) -> None:
        self.worker = worker
        self._sock, self._stream = sock, sock.makefile("rb")

    def send(self, *sent: ToWorker) -> None:
        self._sock.sendall(b"".join(map(encode_frame, sent)))

    def drain(self) -> None:
        """Read and drop everything from now on."""
        threading.Thread(target=self._stream.read, daemon=True).start()

    def receive(self, *kinds: type[FromWorker]) -> FromWorker:
        """Return the next message of these kinds."""
        while True:
            (length,) = LENGTH.unpack(self._stream.read(LENGTH.size))
            message = decode_from_worker(self._stream.read(length))
            if isinstance(message, kinds):
                return message


@contextmanager
def running(create: Callable[[socket.socket, Callable[[], object]], Worker]) -> Iterator[WorkerSocket]:
    """Run a worker in a thread, yield the server's end of its socket, and stop the worker.

    Args:
        create: makes the worker from its end of the socket, and from what it calls when the server's end is closed.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS)
    with ours, theirs:
        is_read = threading.Event()
        worker = create(theirs, is_read.set)
        thread = threading.Thread(target=_run, args=[worker], daemon=True)  # a failing test must end
        thread.start()
        server = WorkerSocket(ours, worker)
        yield server
        server.send(Stop())
        thread.join(SECONDS)
        assert not thread.is_alive()
        ours.shutdown(socket.SHUT_WR)
        assert is_read.wait(SECONDS)


def _run(worker: Worker) -> None:
    with suppress(DeviceError):  # the worker has told the server
        worker.run(0.0)
