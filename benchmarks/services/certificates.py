"""A throwaway certificate authority, which signs a certificate for servers of this machine and one for their clients.

Knows openssl's command; no server.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.services.service import USER, program

DAYS = 2
NAMES = {"server": "DNS:localhost", "client": f"DNS:{USER}"}


@dataclass(frozen=True, slots=True)
class Certificates:
    """Certificates and keys in a folder, as PEM files. The server's is valid for `localhost`, not for 127.0.0.1."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make new ones in a folder that exists. They need the program that `missing` names."""
        made = cls(folder)
        _openssl("/CN=throwaway authority", made.certificate("authority"), made.key("authority"))
        signer = ["-CA", str(made.certificate("authority")), "-CAkey", str(made.key("authority"))]
        for name, alternative in NAMES.items():
            extensions = ["-addext", f"subjectAltName={alternative}", "-addext", "basicConstraints=critical,CA:FALSE"]
            _openssl(f"/CN={USER}", made.certificate(name), made.key(name), *signer, *extensions)
        return made

    @staticmethod
    def missing() -> str | None:
        """Return the program that is not installed, or None."""
        return None if program("openssl") else "openssl"

    def certificate(self, name: str) -> Path:
        """Return the certificate of "authority", "server" or "client"."""
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"


def _openssl(subject: str, certificate: Path, key: Path, *options: str) -> None:
    """Make a key and its certificate."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
    command = ["openssl", "req", "-x509", *new_key, "-out", str(certificate), "-days", str(DAYS), "-subj", subject]
    subprocess.run([*command, *options], check=True, capture_output=True)
