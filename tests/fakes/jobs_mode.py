"""The way in which the servers of tests get their images: from their own workers, or from a fleet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

MODES = ("embedded", "redis", "rabbitmq")


@dataclass(frozen=True)
class FleetServices:
    """The services that fleets of tests share.

    Attributes:
        broker: URL.
        new_database: returns the URL of an empty database.
        current: those that `fakes.server.serving` uses; None for servers with workers of their own.
    """

    broker: str
    new_database: Callable[[], str]

    current: ClassVar[Self | None] = None
