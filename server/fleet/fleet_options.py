"""Addresses and name of a fleet. Knows text; connects to nothing."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Options that all processes of a fleet have in common.

    Attributes:
        broker: URL; see `Broker`.
        database: URL of a PostgreSQL database.
        name: keeps fleets apart that share a broker.
    """

    broker: str = field(repr=False)
    database: str = field(repr=False)
    name: str = "zimage"
