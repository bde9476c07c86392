"""Facts about a deployment that need no simulation: seconds of one image, busy GPUs, objectives out of reach."""

from dataclasses import replace

import pytest

from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.devices.gpus import gpu
from benchmarks.capacity.devices.source import Source
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop
from benchmarks.workload.mix import Mix, RequestKind
from benchmarks.workload.objective import Objective

H100 = Source.of_gpu(gpu("H100"), 0.45)


def deployment(*kinds: RequestKind, rate: float = 2.0) -> Deployment:
    return Deployment(source=H100, mix=Mix(kinds), load=OpenLoop(rate))


def square(**options: object) -> RequestKind:
    return RequestKind(**{"name": "square", "width": 1024, "height": 1024} | options)  # type: ignore[arg-type]


def test_image_alone_takes_as_long_as_its_steps_and_guidance_ask_for() -> None:
    one = deployment(square()).alone
    assert deployment(square(steps=16)).alone == pytest.approx(2 * one, rel=0.05)
    assert deployment(square(guidance_scale=4.0)).alone == pytest.approx(2 * one, rel=0.05)
    assert deployment(square(), square(name="long", steps=16)).alone == deployment(square(steps=16)).alone


def test_model_with_more_steps_takes_longer() -> None:
    slow = replace(H100, steps=16)
    assert replace(deployment(square()), source=slow).alone == deployment(square(steps=16)).alone


def test_arrivals_keep_gpus_busy_with_the_work_of_their_kinds() -> None:
    one = deployment(square(), rate=1.0).busy_gpus
    assert one == pytest.approx(deployment(square()).alone, rel=0.05)
    assert deployment(square(), rate=3.0).busy_gpus == pytest.approx(3 * one)
    assert deployment(square(images=4), rate=1.0).busy_gpus == pytest.approx(4 * one)
    assert deployment(square(edit=True), rate=1.0).busy_gpus < 0.7 * one  # an edit skips two steps in five
    assert replace(deployment(square()), load=ClosedLoop(50)).busy_gpus == 0


@pytest.mark.parametrize(
    ("weight", "objective", "is_out"),
    [(0.04, "p95=2s", False), (0.06, "p95=2s", True), (0.06, "p50=2s", False), (0.06, "p95=3s", False)],
)
def test_objective_is_out_of_reach_if_more_images_than_it_leaves_out_are_slower_alone(
    weight: float, objective: str, is_out: bool
) -> None:
    mixed = deployment(square(weight=1 - weight), square(name="long", steps=16, weight=weight))
    assert mixed.is_out_of_reach(Objective.parse_all(objective)) == is_out
