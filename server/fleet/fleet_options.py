"""What all processes of a fleet must agree on. Knows names; not what is there."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What the processes of a fleet share.

    Attributes:
        broker: URL; see `Broker`.
        database: URL of a PostgreSQL database.
        name: keeps fleets apart that share a broker.
    """

    broker: str = field(repr=False)
    database: str = field(repr=False)
    name: str = "zimage"
