"""A deployment to be sized: a workload on GPUs of one kind, as scenarios of the simulation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from benchmarks.capacity.devices.source import Source
from benchmarks.capacity.sizing import Simulate, Sizing, Trial, search, whole_machines
from benchmarks.simulation.plans import simulated_manifest
from benchmarks.simulation.requests import PreparedKind, prepare
from benchmarks.simulation.scenario import (
    Change,
    ClosedLoop,
    EmbeddedServer,
    Fleet,
    OpenLoop,
    SimulationResult,
    SimulationScenario,
)
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.arrivals import RateCurve
from benchmarks.workload.mix import Mix
from benchmarks.workload.objective import Objective
from engine.options import SLOTS
from engine.plan.manifest import Manifest, Range
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.size import Size
from server.jobs.admission.admission import Limits

PER_HOST = 4
MAX_BATCH = 4  # of the default profile of Z-Image-Turbo
LARGE = 200  # GPUs of a fleet from which on its simulation is coarser: image by image, not pass by pass
QUEUE = Limits().queue  # the default of --queue
SMALLEST = 64  # pixels
LATENCIES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}  # objectives, and the share of requests that must be as fast


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A workload, and what serves it.

    Attributes:
        per_host: GPUs of a machine. Up to so many are one `zimage-serve`; more are a fleet of such machines.
        max_batch: largest batch of the plans.
        seconds: simulated time, with the warm-up.
        warmup: seconds at the start that no figure counts.
        has_different_prompts: False for clients that repeat a few, as a load generator does.
        changes: of the simulated policies, to see that a validation fails.
    """

    source: Source
    mix: Mix
    load: ClosedLoop | OpenLoop
    per_host: int = PER_HOST
    max_batch: int = MAX_BATCH
    seconds: float = 600.0
    warmup: float = 60.0
    queue: int = QUEUE
    has_different_prompts: bool = True
    changes: frozenset[Change] = frozenset()

    def with_load(self, share: float) -> Self:
        """Return this deployment with a share of its users or of its rate."""
        load = self.load
        if isinstance(load, ClosedLoop):
            return replace(self, load=replace(load, users=max(1, round(share * load.users))))
        assert not isinstance(load.rate, RateCurve), "a load that is sized is constant"
        return replace(self, load=replace(load, rate=share * load.rate))

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes of the mix, the smallest first."""
        return tuple(sorted({kind.size for kind in self.mix.kinds}, key=lambda size: size.area))

    @property
    def table(self) -> BatchTable:
        """The batch table that measuring this device would give."""
        times, length = self.source.times, self.source.prompt_length
        batches = range(1, self.max_batch + 1)
        rows = (
            PassTimes(*size, tuple(times.pass_seconds(size, batch, length) for batch in batches)) for size in self.sizes
        )
        return BatchTable(self.source.name, tuple(rows))

    @property
    def manifest(self) -> Manifest:
        """A manifest of plans that cover the mix."""
        largest = max(max(size) for size in self.sizes)
        sides = Range(SMALLEST, max(SMALLEST, largest), max(largest, 2048))
        return simulated_manifest(
            steps=self.source.steps, guidance=self.source.guidance, max_batch=self.max_batch, sides=sides
        )

    @property
    def alone(self) -> float:
        """Seconds of one image of the slowest kind that is alone on its GPU."""
        return max(map(self._alone, self._prepared))

    @property
    def busy_gpus(self) -> float:
        """GPUs that the arrivals keep busy, all in the best batches; 0 for users, who wait for their images."""
        if isinstance(self.load, ClosedLoop):
            return 0.0
        kinds, table = self.mix.kinds, self.table
        seconds = sum(each.kind.weight * self._seconds(each, table.limit(each.kind.size)) for each in self._prepared)
        return self.peak * seconds / sum(kind.weight for kind in kinds)

    @property
    def peak(self) -> float:
        """Users, or requests per second at most."""
        if isinstance(self.load, ClosedLoop):
            return self.load.users
        return self.load.rate.peak if isinstance(self.load.rate, RateCurve) else self.load.rate

    @property
    def fewest(self) -> int:
        """GPUs with fewer than which arrivals would outrun them."""
        return max(1, math.ceil(self.busy_gpus))

    def is_out_of_reach(self, objectives: Sequence[Objective]) -> bool:
        """Return True if too many images take longer than an objective even when each is alone on its GPU."""
        total = sum(kind.weight for kind in self.mix.kinds)
        for objective in objectives:
            if (share := LATENCIES.get(objective.name)) is not None:
                slow = sum(each.kind.weight for each in self._prepared if self._alone(each) > objective.bound)
                if slow / total > 1 - share:
                    return True
        return False

    def size(
        self,
        objectives: Sequence[Objective],
        seeds: Sequence[int],
        least: int,
        most: int,
        simulate: Simulate | None = None,
    ) -> Sizing:
        """Search the fewest GPUs from `least` to `most`. A number that cannot suffice is not simulated.

        Args:
            simulate: in place of `trial`.

        Raises:
            InvalidRequest: `least` to `most` are no whole number of machines.
        """
        last = whole_machines(most, self.per_host)
        if least <= last and (self.fewest > last or self.is_out_of_reach(objectives)):
            return Sizing(objectives, None, last, ())
        return search(simulate or self.trial, self.per_host, objectives, seeds, max(least, self.fewest), most)

    def embedded(self, gpus: int) -> EmbeddedServer:
        """Return one `zimage-serve` with so many GPUs."""
        limits = Limits(queue=self.queue, free_bytes=0)
        return EmbeddedServer(devices=gpus, slots=SLOTS, table=self.table, limits=limits, max_ahead=self._ahead)

    def fleet(self, gpus: int) -> Fleet:
        """Return a fleet of whole machines; of machines with one GPU each for fewer GPUs than a machine has."""
        per_host = self.per_host if gpus > self.per_host else 1
        return Fleet(
            hosts=math.ceil(gpus / per_host),
            devices_per_host=per_host,
            slots=SLOTS,
            table=self.table,
            granularity="image" if gpus > LARGE else "run",
            queue=self.queue * max(1, gpus // self.per_host),
        )

    def whole(self, gpus: float) -> int:
        """Return the next larger number of GPUs that is a part of one machine or several whole ones."""
        return max(1, math.ceil(gpus)) if gpus <= self.per_host else math.ceil(gpus / self.per_host) * self.per_host

    def scenario(self, server: EmbeddedServer | Fleet, seed: int) -> SimulationScenario:
        """Return the scenario of this workload on a server."""
        return SimulationScenario(
            server=server,
            load=self.load,
            mix=self.mix,
            manifest=self.manifest,
            times=self.source.times,
            costs=self.source.costs,
            prompt_length=self.source.prompt_length,
            different_prompts=self.has_different_prompts,
            seconds=self.seconds,
            warmup=self.warmup,
            seed=seed,
            changes=self.changes,
        )

    def simulate(self, gpus: int, seed: int) -> SimulationResult:
        """Simulate a number of GPUs: of one server, or of a fleet."""
        return simulate(self.scenario(self.embedded(gpus) if gpus <= self.per_host else self.fleet(gpus), seed))

    def trial(self, gpus: int, seed: int) -> Trial:
        """Simulate a number of GPUs for a search."""
        result = self.simulate(gpus, seed)
        return Trial(gpus, seed, result.figures, result.utilisation)

    @property
    def _ahead(self) -> int:
        return 1 if self.source.is_gpu else 0

    @property
    def _prepared(self) -> Sequence[PreparedKind]:
        return tuple(prepare(self.mix.kinds, self.manifest, self.source.prompt_length).values())

    def _alone(self, prepared: PreparedKind) -> float:
        return self.source.alone(prepared.kind.size, prepared.cost / prepared.kind.size.area)

    def _seconds(self, prepared: PreparedKind, batch: int) -> float:
        """Return the seconds of a GPU for a request whose images share their passes with others."""
        times, length, kind = self.source.times, self.source.prompt_length, prepared.kind
        passes = prepared.cost / kind.size.area
        image = passes * times.pass_seconds(kind.size, batch, length) / batch
        return kind.images * (image + times.prompt_encoder_seconds(length) + times.decode_seconds(kind.size))


def in_words(gpus: int) -> str:
    """Return a number of GPUs in words."""
    return f"{gpus} GPU{'s' if gpus != 1 else ''}"
