"""A hub with one model, as far as the clients of Hugging Face and ModelScope ask one for a download."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

COMMIT = "a" * 40


@contextmanager
def serve_model(model: str, folder: Path, sizes: dict[str, int] | None = None) -> Iterator[str]:
    """Serve the files of a folder as the model's.

    Args:
        sizes: bytes that the hub states for some files, in place of their own.

    Yields:
        The address of the hub.
    """
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    stated = {name: (folder / name).stat().st_size for name in files} | (sizes or {})

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlparse(self.path)
            if url.path == f"/api/models/{model}/tree/{COMMIT}":
                entries = [{"type": "file", "path": name, "size": stated[name], "oid": COMMIT} for name in files]
                self._answer(json.dumps(entries).encode())
            elif url.path.startswith(f"/api/models/{model}"):
                siblings = [{"rfilename": name, "size": stated[name]} for name in files]
                self._answer(json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode())
            elif url.path.startswith(prefix := f"/{model}/resolve/{COMMIT}/"):
                self._answer((folder / url.path.removeprefix(prefix)).read_bytes())
            elif url.path == f"/api/v1/models/{model}/repo/files":
                self._answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": self._entries()}}).encode())
            elif url.path == f"/api/v1/models/{model}/repo":
                self._answer((folder / parse_qs(url.query)["FilePath"][0]).read_bytes())
            else:
                self._answer(json.dumps({"Code": 200, "Success": True, "Data": {}}).encode())

        do_HEAD = do_GET

        def _entries(self) -> list[dict[str, Any]]:
            return [
                {"Path": name, "Name": Path(name).name, "Size": stated[name], "Type": "blob", "Sha256": sha256(name)}
                for name in files
            ]

        def _answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    def sha256(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
