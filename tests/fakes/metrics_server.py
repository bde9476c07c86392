"""A server with /metrics and nothing else, and a program in the place of nvidia-smi."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class MetricsServer:
    """Attributes: text: what /metrics answers; None for 503."""

    def __init__(self, text: str | None) -> None:
        self.text = text
        self.url = ""


@contextmanager
def metrics_server(text: str | None, moved_to: str = "") -> Iterator[MetricsServer]:
    """Run a server; with `moved_to`, it answers only with a redirect to that address."""
    served = MetricsServer(text)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_there = served.text is not None and self.path == "/metrics"
            body = (served.text or "").encode()
            self.send_response(302 if moved_to else 200 if is_there else 503)
            if moved_to:
                self.send_header("Location", moved_to)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def write_nvidia_smi(folder: Path, lines: str) -> None:
    """Write a program that prints lines and stays, as nvidia-smi with --loop-ms does, and keeps its arguments."""
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/arguments\ncat <<END\n{lines}\nEND\nexec sleep 60\n')
    program.chmod(0o755)
