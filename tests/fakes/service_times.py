"""Service times that tests give, and scenarios of simulations with them."""

from dataclasses import dataclass, replace

from benchmarks.simulation.plans import simulated_manifest
from benchmarks.simulation.scenario import ClosedLoop, Costs, EmbeddedServer, SimulationScenario
from benchmarks.workload.mix import Mix, RequestKind
from engine.plan.manifest import Range
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.size import Size

MANIFEST = simulated_manifest(steps=4, max_batch=4, sides=Range(64, 256, 512))
TABLE = BatchTable("fake", (PassTimes(256, 256, (0.1, 0.11, 0.12, 0.13)),))
FREE = Costs(request=0.0, response=0.0, file=0.0)
ONE = RequestKind(name="one", width=256, height=256)


@dataclass(frozen=True)
class FakeTimes:
    """Seconds of a pass by batch, in proportion to the area; one pass for a prompt and two to decode."""

    seconds: tuple[float, ...] = TABLE.rows[0].seconds
    prompt: float = 0.0
    decode: float = 0.0
    encode_image: float = 0.0

    def pass_seconds(self, size: Size, batch: int, prompt_length: int) -> float:  # noqa: ARG002
        return self.seconds[batch - 1] * size.area / 256**2

    def prompt_encoder_seconds(self, prompt_length: int) -> float:  # noqa: ARG002
        return self.prompt

    def decode_seconds(self, size: Size) -> float:  # noqa: ARG002
        return self.decode

    def encode_image_seconds(self, size: Size) -> float:  # noqa: ARG002
        return self.encode_image


BASIC = SimulationScenario(
    server=EmbeddedServer(),
    load=ClosedLoop(1, think=0.0),
    mix=Mix((ONE,)),
    manifest=MANIFEST,
    times=FakeTimes(),
    costs=FREE,
    seconds=60.0,
    warmup=10.0,
)


def scenario(*kinds: RequestKind, **fields: object) -> SimulationScenario:
    """Return a scenario of one user who does not think, of other kinds if some are given."""
    return replace(BASIC, **{"mix": Mix(kinds or (ONE,))} | fields)
