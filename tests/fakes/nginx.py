"""nginx with deploy/nginx.conf in front of a server, where Debian's nginx is installed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
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
    include {folder}/zimage-trt.conf;
}}
"""
TEMP_PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def behind_nginx(
    url: str, folder: Path, *, prefix: str = "", changes: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run nginx in front of the server at `url`, and yield the URL of nginx.

    Args:
        prefix: path that nginx serves the server under, such as "/generate".
        changes: replacements of texts in deploy/nginx.conf.
    """
    port = free_port()
    changes = {
        "listen 80;": f"listen 127.0.0.1:{port};",
        "http://127.0.0.1:8000;": f"{url}/;" if prefix else f"{url};",
        **({'zimage_prefix "";': f'zimage_prefix "{prefix}";', "location /": f"location {prefix}/"} if prefix else {}),
        **(changes or {}),
    }
    site = (ROOT / "deploy" / "nginx.conf").read_text()
    for before, after in changes.items():
        assert site.count(before) == 1, f"deploy/nginx.conf has {before!r} {site.count(before)} times"
        site = site.replace(before, after)
    (folder / "zimage-trt.conf").write_text(site)
    temp_paths = "\n    ".join(f"{name}_temp_path {folder}/{name};" for name in TEMP_PATHS)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, temp_paths=temp_paths))
    folder.chmod(0o755)
    assert NGINX is not None
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]  # for the folder
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as nginx:
        try:
            _wait_until_listening(nginx, port, folder / "log")
            yield f"http://127.0.0.1:{port}{prefix}"
        finally:
            nginx.terminate()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _wait_until_listening(nginx: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and nginx.poll() is None:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError(f"nginx does not listen: {log.read_text()}")
