"""Real PostgreSQL, Redis, RabbitMQ and S3 servers for tests; see benchmarks/services.

One of each per process of a test run, started by the first test that needs it; PostgreSQL takes a second, RabbitMQ
and S3 four. A test that stops, kills or pauses a server starts its own: `with new(Redis) as redis:`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from benchmarks.services.certificates import Certificates
from benchmarks.services.postgres import PostgreSql
from benchmarks.services.rabbitmq import RabbitMq
from benchmarks.services.redis import Redis
from benchmarks.services.seaweed import SeaweedS3
from benchmarks.services.service import Service

__all__ = ["Certificates", "PostgreSql", "RabbitMq", "Redis", "SeaweedS3", "Service", "new"]

S = TypeVar("S", bound=Service)


@contextmanager
def new(kind: type[S], host: str = "127.0.0.1", certificates: Certificates | None = None) -> Iterator[S]:
    """Run a server until the end of the block; skip the test if its package is not installed."""
    if program := kind.missing():
        pytest.skip(
            f"needs {program} (Debian's package {kind.package}); scripts/install installs it with root's rights"
        )
    service = kind(host)
    service.certificates = certificates
    with service:
        yield service
