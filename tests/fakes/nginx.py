"""nginx with deploy/nginx/ in front of servers, where Debian's nginx is installed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fakes.processes import ROOT

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs Debian's package nginx-light")
MAIN = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr info;
events {{ worker_connections 512; }}
http {{
    access_log off;
    {temp_paths}
    include {folder}/conf.d/*.conf;
}}
"""
TEMP_PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def behind_nginx(
    url: str | Sequence[str], folder: Path, *, prefix: str = "", changes: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run nginx in front of the server at `url`, or of several, and yield the URL of nginx.

    Args:
        prefix: path that nginx serves the server under, such as "/generate".
        changes: replacements of texts in deploy/nginx/.
    """
    port = free_port()
    servers = [url] if isinstance(url, str) else url
    below = {
        'zimage_prefix "";': f'zimage_prefix "{prefix}";',
        "location /": f"location {prefix}/",
        "http://zimage;": "http://zimage/;",
    }
    changes = {
        "listen 80;": f"listen 127.0.0.1:{port};",
        "    server 127.0.0.1:8000 max_fails=0;": "\n".join(
            f"    server {server.removeprefix('http://')} max_fails=0;" for server in servers
        ),
        **(below if prefix else {}),
        **(changes or {}),
    }
    files = {path.name: path.read_text() for path in (ROOT / "deploy" / "nginx").glob("*.conf")}
    for before, after in changes.items():
        found = [name for name, text in files.items() for _ in range(text.count(before))]
        assert len(found) == 1, f"deploy/nginx/ has {before!r} {len(found)} times"
        files[found[0]] = files[found[0]].replace(before, after)
    (folder / "conf.d").mkdir()
    for name, text in files.items():
        (folder / "conf.d" / name).write_text(text)
    command = _command(folder)
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as nginx:
        try:
            _wait_until_listening(nginx, port, folder / "log")
            yield f"http://127.0.0.1:{port}{prefix}"
        finally:
            nginx.terminate()


def checked(folder: Path) -> str:
    """Return what nginx says of the configuration in the folder's conf.d, without running it."""
    done = subprocess.run([*_command(folder), "-t"], capture_output=True, text=True)
    return done.stderr


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _command(folder: Path) -> list[str]:
    """Write nginx.conf into a folder, for the files in its conf.d, and return the command that runs nginx with it."""
    temp_paths = "\n    ".join(f"{name}_temp_path {folder}/{name};" for name in TEMP_PATHS)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, temp_paths=temp_paths))
    folder.chmod(0o755)
    assert NGINX is not None
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return [*command, "-g", "user root;"] if os.geteuid() == 0 else command  # for the folder


def _wait_until_listening(nginx: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and nginx.poll() is None:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError(f"nginx does not listen: {log.read_text()}")
