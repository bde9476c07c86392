"""A reverse proxy that serves another server under a prefix, one request per connection. WebSockets pass."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PREFIX = "/generate"


@contextmanager
def behind_prefix(url: str) -> Iterator[str]:
    """The URL under which the proxy has the server's root."""
    port = int(url.rpartition(":")[2])

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=_forward, args=(listener.accept()[0], port), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{PREFIX}/"
        listener.shutdown(socket.SHUT_RDWR)


def _forward(client: socket.socket, port: int) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(1 << 16)
        if not data:
            client.close()
            return
        head += data
    first, _, rest = head.partition(b"\r\n")
    method, path, protocol = first.split(b" ")
    extra = [b"x-forwarded-prefix: " + PREFIX.encode()]
    if b"upgrade: websocket" not in rest.lower():
        rest = rest.replace(b"Connection: keep-alive", b"Connection: close")
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        target = path.removeprefix(PREFIX.encode())
        server.sendall(b"\r\n".join([b" ".join([method, target, protocol]), *extra, rest]))
        upwards = threading.Thread(target=_pump, args=(client, server), daemon=True)
        upwards.start()
        _pump(server, client)
        upwards.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
