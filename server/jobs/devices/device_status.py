"""State of a device, as health checks report it. Knows neither workers nor jobs."""

from dataclasses import dataclass, field

from server.worker.messages import Batching


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device and its worker.

    Attributes:
        name: such as "cuda:0" or "cpu:1".
        is_ready: True if its worker takes jobs now.
        starts: worker processes started so far.
        last_failure: reason for the end of the last worker; None if none has ended.
        jobs: unfinished jobs that the worker has.
        host: name of the worker host; None if the device belongs to this server.
        batching: what its worker last said about the images that share forward passes.
    """

    name: str
    is_ready: bool
    starts: int
    last_failure: str | None
    jobs: int
    host: str | None = None
    batching: Batching = field(default_factory=Batching)
