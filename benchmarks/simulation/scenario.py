"""Scenarios and results of simulations: frozen descriptions without behaviour.

Times are in seconds. Knows the server's limits, batching tables and plans; not how they are simulated.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from benchmarks.workload.arrivals import RateCurve
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.mix import Mix
from benchmarks.workload.records import Record
from engine.options import SLOTS
from engine.plan.manifest import Manifest
from engine.scheduler.batch_table import BatchTable
from engine.size import Size
from server.jobs.admission.admission import Limits
from server.jobs.admission.rate import Rate

Change = Literal["fifo", "no-batch"]
Granularity = Literal["step", "run", "image"]

NO_BATCHES = BatchTable()
MEGAPIXEL = 1e6


class ServiceTimes(Protocol):
    """Seconds that a device takes, as measured or as a roofline has them."""

    def pass_seconds(self, size: Size, batch: int, prompt_length: int) -> float:
        """Return the time of a forward pass. `prompt_length`: padded tokens."""
        ...

    def prompt_encoder_seconds(self, prompt_length: int) -> float:
        """Return the time of the prompt encoder for one prompt."""
        ...

    def decode_seconds(self, size: Size) -> float:
        """Return the time of the VAE decoder for one image."""
        ...

    def encode_image_seconds(self, size: Size) -> float:
        """Return the time of the VAE encoder for an image that a request begins with."""
        ...


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds beside `ServiceTimes`.

    Attributes:
        request: time of the server's one event loop for a request, from its bytes to the queue.
        response: time of the same loop for an answer with one image.
        file: time of a worker's thread for the file of an image of one megapixel; each worker has two such threads.
        step: time of a worker's thread between two forward passes, while the device waits.
        lora_change: duration of a change of LoRAs.
        spread: coefficient of variation of a forward pass (log-normal).
    """

    request: float = 0.002
    response: float = 0.002
    file: float = 0.05
    step: float = 0.0
    lora_change: float = 2.0
    spread: float = 0.0

    def file_seconds(self, size: Size) -> float:
        """Return the seconds that the file of an image takes."""
        return self.file * size.area / MEGAPIXEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Times for which clients wait, in every loop.

    Attributes:
        patience: for which a client does what answers with Retry-After ask.
        timeout: after which a client gives up on an answer, and its job is cancelled.
    """

    patience: float = 120.0
    timeout: float = 600.0


@dataclass(frozen=True, slots=True)
class ClosedLoop(Waiting):
    """Users that send a request, wait for the answer and think.

    Attributes:
        think: mean of the exponential pause.
        clients: that the server tells apart; None for one per user. Users of one machine without keys are one client.
    """

    users: int
    think: float = 1.0
    clients: int | None = None


@dataclass(frozen=True, slots=True)
class OpenLoop(Waiting):
    """Requests that arrive whatever becomes of the earlier ones.

    Attributes:
        rate: requests per second, constant or by time; see `benchmarks.workload.arrivals`.
        clients: among which the requests are spread evenly.
    """

    rate: float | RateCurve
    clients: int = 100


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """The death of a device's worker at a moment.

    Attributes:
        at: seconds from the start.
        restart: seconds until the next worker is ready.
    """

    at: float
    device: int = 0
    restart: float = 30.0


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """One `zimage-serve` with workers of its own.

    Attributes:
        devices: each with one worker.
        slots: images that a worker may have under way.
        table: batch sizes that gain throughput; without rows, nothing shares a pass.
        max_ahead: passes that may run while the next one is prepared: 0 on a CPU, 1 on a GPU.
        rate: requests that each client may send in a time; None for no limit.
    """

    devices: int = 1
    slots: int = SLOTS
    table: BatchTable = NO_BATCHES
    limits: Limits = field(default_factory=lambda: Limits(free_bytes=0))
    max_ahead: int = 0
    rate: Rate | None = None
    deaths: tuple[WorkerDeath, ...] = ()


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """An autoscaler that knows how busy devices are and how long the waiting jobs take.

    It is not that of the deployment. KEDA (deploy/kubernetes/components/keda) knows no seconds: it counts unfinished
    jobs, waiting ones and running ones, and wants one host for each `targetQueryValue` of them. It removes at most one
    host every five minutes, where this one removes all that it does not need at once.

    Attributes:
        min_hosts, max_hosts: bounds of the number of hosts.
        target: seconds in which the waiting jobs should be generated, by devices beside those that are busy.
        utilisation: share of the devices that should be busy at most.
        every: seconds between two decisions.
        load: seconds from a decision to the first job of a new host: boot and loading of the plans.
        cool_down: seconds after the last addition in which no host is removed.
    """

    min_hosts: int
    max_hosts: int
    target: float = 5.0
    utilisation: float = 0.8
    every: float = 15.0
    load: float = 180.0
    cool_down: float = 300.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Hosts that stop without notice, and come back.

    Attributes:
        at: seconds from the start.
        hosts: consecutive hosts, such as those of a rack.
        lasts: seconds until they take jobs again.
    """

    at: float
    hosts: int
    lasts: float = 600.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """API replicas, a database, and worker hosts that claim jobs from it.

    Attributes:
        hosts: at the start; an autoscaler may change their number.
        devices_per_host: each with one worker.
        claim: from the acceptance of a job to its arrival at an idle host.
        lease: after which the jobs of a host that vanished are claimed again, counted from its last heartbeat.
        queue: unfinished jobs at most; more are refused with 429.
        granularity: "step" asks the engine's scheduler before every pass. "run" asks it when an image has ended or
            arrived. "image" has no scheduler on a device and takes images as they come: it is for thousands of
            devices and one size, since images of other sizes and LoRAs wait longer there than they would.
        report_every: between two points of the timeline.
    """

    hosts: int
    devices_per_host: int = 1
    slots: int = SLOTS
    table: BatchTable = NO_BATCHES
    claim: float = 0.02
    lease: float = 10.0
    heartbeat: float = 2.0
    queue: int = 10_000
    granularity: Granularity = "run"
    autoscaler: Autoscaler | None = None
    failures: tuple[Failure, ...] = ()
    report_every: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationScenario:
    """A server or a fleet under load.

    Attributes:
        manifest: of the plans; `benchmarks.simulation.plans.simulated_manifest` makes one.
        prompt_length: tokens of every prompt.
        different_prompts: True if each request has a prompt of its own; False if devices have all prompts in their
            caches after the first of a kind, as with a load generator that repeats a few.
        seconds: length, with the warm-up. Requests under way at its end are waited for.
        warmup: left out of the figures.
        changes: of the policies, to see predictions miss: "fifo" without shares of clients and sizes, and "no-batch".
    """

    server: EmbeddedServer | Fleet
    load: ClosedLoop | OpenLoop
    mix: Mix
    manifest: Manifest
    times: ServiceTimes
    costs: Costs = Costs()
    prompt_length: int = 32
    different_prompts: bool = False
    seconds: float = 300.0
    warmup: float = 10.0
    seed: int = 1
    changes: frozenset[Change] = frozenset()


@dataclass(frozen=True, slots=True)
class FleetMoment:
    """The state of a fleet at one moment, and what has happened since the one before.

    Attributes:
        ready, starting: devices of hosts that take jobs, and of those that load plans.
        busy: devices that generate.
        waiting: jobs that no host has.
        arrived, ended, refused: jobs since the last moment.
        p95_s: latency of the jobs that ended; None without enough of them.
    """

    at_s: float
    ready: int
    starting: int
    busy: int
    waiting: int
    arrived: int
    ended: int
    refused: int
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class ScalingEvent:
    """A decision of the autoscaler: hosts before and after it."""

    at_s: float
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The outcome of a simulation.

    Attributes:
        figures: those of `zimage-bench load`; of a fleet none by kind, no timeline and no times of the server.
        records: one for each request; none of a fleet, which may have millions.
        utilisation: share of the devices' time, while they were ready, in which they computed.
        device_seconds: seconds for which devices were paid: ready or loading.
        passes: number of forward passes by batch size.
        timeline, scalings: of a fleet.
        replays: jobs that were claimed again since their host had stopped.
    """

    figures: RungFigures
    records: tuple[Record, ...] = ()
    utilisation: float = 0.0
    device_seconds: float = 0.0
    passes: dict[int, int] = field(default_factory=dict)
    timeline: tuple[FleetMoment, ...] = ()
    scalings: tuple[ScalingEvent, ...] = ()
    replays: int = 0
