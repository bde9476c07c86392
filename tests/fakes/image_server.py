"""A small server of OpenAI's image endpoint whose images and refusals a test chooses, in threads of the test."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Refusal = tuple[int, Mapping[str, str]]  # status and headers


def pattern(seed: int, size: str = "64x64", noise: int = 0) -> bytes:
    """Return a PNG of blocks that depend on the seed; `noise` changes each pixel by so many levels."""
    width, height = map(int, size.split("x"))
    blocks = np.random.default_rng(seed).integers(40, 216, (4, 4, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)) + noise
    return png(pixels)


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class ImageServer:
    """Answers with `draw(body)`, unless `refuse(number)` refuses the request of that number, counted from 1.

    Attributes:
        draw: returns the images of a body.
        refuse: returns a status with headers, or None.
        validate: raises ValueError for a body that the server does not take.
        received: headers and body of each request, in order.
        more, headers: further fields of answers, and their headers.
    """

    def __init__(self) -> None:
        self.draw: Callable[[dict[str, Any]], list[bytes]] = lambda body: [
            pattern(body["seed"] + index, body["size"]) for index in range(body.get("n", 1))
        ]
        self.refuse: Callable[[int], Refusal | None] = lambda _: None
        self.validate: Callable[[dict[str, Any]], object] = lambda _: None
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.more: dict[str, Any] = {}
        self.headers = {"server-timing": "queue;dur=20.0, denoiser;dur=30.0"}
        self._lock = threading.Lock()
        self._open_at = 0.0
        self._stalls: dict[int, float] = {}

    def stall(self, number: int, seconds: float) -> None:
        """Let all requests from number `number` on wait until `seconds` after it has come."""
        self._stalls[number] = seconds

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of an answer."""
        with self._lock:
            self.received.append((headers, body))
            number = len(self.received)
            if number in self._stalls:
                self._open_at = time.monotonic() + self._stalls.pop(number)
        time.sleep(max(self._open_at - time.monotonic(), 0))
        if refusal := self.refuse(number):
            return *refusal, b'{"error": {"message": "busy", "code": "busy"}}'
        try:
            self.validate(body)
        except ValueError as error:
            return 422, {}, json.dumps({"detail": str(error)}).encode()
        data = [{"b64_json": base64.b64encode(image).decode()} for image in self.draw(body)]
        return (
            200,
            self.headers,
            json.dumps({"data": data} | self.more).encode(),
        )


@contextmanager
def image_server() -> Iterator[tuple[ImageServer, str]]:
    """Run a server and yield it with its address."""
    found = ImageServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(404, {}, b"not found")

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/v1/images/generations":
                self._send(404, {}, b"not found")
                return
            self._send(*found.answer(dict(self.headers), json.loads(content)))

        def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass  # a client that has gone

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield found, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
