"""Options of a worker host. Knows no defaults of the command line."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Options of a host.

    Attributes:
        id: unique for each start of a host.
        host: name of its machine.
        version: of zimage-trt.
        broker: URL.
        fleet: name of the fleet.
        loras: names that its devices can apply.
        grace: seconds to finish running jobs after SIGTERM; others go back into the queue.
    """

    id: str
    host: str
    version: str
    broker: str
    fleet: str
    loras: tuple[str, ...] = ()
    grace: float = 60.0
