"""The measurement of a batch table: one pass at a time, beside real images."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fakes.loop_builder import RED, LoopBuilder, remaining_events

from engine.errors import OutOfDeviceMemory, UnsupportedShape
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.scheduler.batch_measurement import BatchMeasurement
from engine.scheduler.batch_table import PassTimes
from engine.scheduler.events import Denoised
from engine.scheduler.loop import EngineLoop
from engine.scheduler.pending_image import PendingImage
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch
from engine.size import Size

SIZES = (Size(128, 128), Size(64, 64))
REQUESTS = [
    replace(RED, seed=1, guidance_scale=3.0, negative_prompt="a blue star"),
    ImageRequest("a blue star " * 12, 128, 128, seed=2, num_inference_steps=2),
    replace(RED, seed=3),
]


class TimedMeasurement(BatchMeasurement):
    """A measurement whose passes take a second per 64x64 image, by no clock; `passes` lists them."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.passes: list[tuple[int, int]] = []

    def _pass_seconds(self, size: Size, batch: int) -> float:
        self.passes.append((size.width, batch))
        return 0.1 + 0.9 * batch * size.area / 64**2


class SmallMemory(TimedMeasurement):
    """A measurement on a device whose memory one (side, batch) does not fit into, or only in its first pass."""

    def __init__(
        self,
        pipeline: Pipeline,
        sizes: Sequence[Size],
        rounds: int,
        unfit: tuple[int, int],
        fits_at_first: bool = False,
    ) -> None:
        super().__init__(pipeline, sizes, rounds)
        self._unfit, self._fits_at_first = unfit, fits_at_first

    def _pass_seconds(self, size: Size, batch: int) -> float:
        seconds = super()._pass_seconds(size, batch)
        if self._unfit == (size.width, batch) and self.passes.count(self._unfit) > self._fits_at_first:
            raise OutOfDeviceMemory("it is full")
        return seconds


def denoised(loop: EngineLoop) -> list[PendingImage]:
    return [event.pending for event in remaining_events(loop) if isinstance(event, Denoised)]


def test_each_call_runs_one_pass_and_each_batch_is_measured_as_often(fakes: LoopBuilder) -> None:
    measurement = BatchMeasurement(fakes.pipeline, SIZES, rounds=2)
    passes = 0
    while measurement.advance():
        passes += 1
        assert len(fakes.graphs.batches) == passes
    per_batch = 1 + 2 * 2  # to warm up, then before and in each round
    assert sorted(fakes.graphs.batches) == sorted([1, 2, 3, 4] * 2 * per_batch)
    assert [(row.width, len(row.seconds)) for row in measurement.table().rows] == [(64, 4), (128, 4)]


def test_images_between_the_passes_of_a_measurement_are_what_they_are_alone(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    alone = [loop.generate(request).pixels for request in REQUESTS]
    loop, measurement = fakes.loop(), BatchMeasurement(fakes.pipeline, SIZES, rounds=1)
    pending, found = [], []
    while measurement.advance():
        if len(pending) + len(found) < len(REQUESTS):
            loop.submit(str(len(pending) + len(found)), REQUESTS[len(pending) + len(found)])
            pending += denoised(loop)  # finished in another thread, after many passes
        elif pending:
            found.append(pending.pop(0).finish().pixels)
    assert len(found) == len(REQUESTS)
    for mine, expected in zip(found, alone, strict=True):
        assert np.array_equal(mine, expected)


@pytest.mark.parametrize("fakes", ["device, late", "device, eager"], indirect=True)
def test_decoding_before_a_measurement_is_charged_to_its_client(
    fakes: LoopBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device has few timing events, which a measurement must not use again before they are read."""

    def charged(loop: EngineLoop, measurement: BatchMeasurement | None) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []
        complete = loop._scheduler.complete

        def record(batch: Batch, charges: Sequence[tuple[Sample, float]]) -> None:
            found.extend((sample.client, round(seconds, 9)) for sample, seconds in charges)
            complete(batch, charges)

        monkeypatch.setattr(loop._scheduler, "complete", record)
        loop.submit("first", RED, client="anna")
        remaining_events(loop)
        if measurement is not None:
            measurement.finish()
        loop.submit("second", replace(RED, num_inference_steps=1), client="ben")
        remaining_events(loop)
        return found

    expected = charged(fakes.loop(), None)
    assert [client for client, _ in expected] == ["anna"] * 4 + ["ben", "anna"]
    assert charged(fakes.loop(), BatchMeasurement(fakes.pipeline, SIZES, rounds=1)) == expected


def test_passes_that_would_take_too_long_are_left_out_and_never_run(fakes: LoopBuilder) -> None:
    sizes = [Size(side, side) for side in (64, 128, 256)]
    measurement = TimedMeasurement(fakes.pipeline, sizes, rounds=1, longest_pass=4.5)
    rows = measurement.finish().rows
    assert [(row.width, len(row.seconds)) for row in rows] == [(64, 4), (128, 1)]
    assert max(measurement.passes) == (128, 1)
    assert len(TimedMeasurement(fakes.pipeline, sizes, rounds=1, longest_pass=math.inf).finish().rows) == 3


@pytest.mark.parametrize(
    ("unfit", "rows", "named"),
    [
        ((128, 1), [(64, 4)], "128x128 and larger sizes, which do"),
        ((128, 3), [(64, 4), (128, 2), (256, 4)], "3 x 128x128, which does"),
        ((64, 2), [(64, 1), (128, 4), (256, 4)], "2 x 64x64, which does"),
    ],
)
def test_batch_that_does_not_fit_into_memory_is_left_out_by_name(
    fakes: LoopBuilder,
    caplog: pytest.LogCaptureFixture,
    unfit: tuple[int, int],
    rows: list[tuple[int, int]],
    named: str,
) -> None:
    sizes = [Size(side, side) for side in (64, 128, 256)]
    measurement = SmallMemory(fakes.pipeline, sizes, rounds=1, unfit=unfit)
    assert [(row.width, len(row.seconds)) for row in measurement.finish().rows] == rows
    assert caplog.messages == [f"the batch table is without {named} not fit into memory: it is full"]


def test_memory_that_is_taken_during_the_rounds_loses_no_smaller_size(
    fakes: LoopBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    measurement = SmallMemory(fakes.pipeline, SIZES, rounds=1, unfit=(128, 2), fits_at_first=True)
    assert [(row.width, len(row.seconds)) for row in measurement.finish().rows] == [(64, 4)]
    assert "without 128x128 and larger sizes" in caplog.text


def test_device_without_memory_for_one_image_fails(fakes: LoopBuilder) -> None:
    with pytest.raises(OutOfDeviceMemory):
        SmallMemory(fakes.pipeline, SIZES, rounds=1, unfit=(64, 1)).finish()


def test_table_has_the_median_of_the_measured_passes(fakes: LoopBuilder) -> None:
    class Noisy(TimedMeasurement):
        def _pass_seconds(self, size: Size, batch: int) -> float:
            number = len(self.passes)
            return super()._pass_seconds(size, batch) * (9.0 if number == 4 else 1.0)

    table = Noisy(fakes.pipeline, [Size(512, 512)], rounds=3).finish()
    assert table.rows == (PassTimes(512, 512, (0.1 + 0.9 * 64,)),)


def test_first_pass_that_takes_too_long_ends_the_measurement(fakes: LoopBuilder) -> None:
    measurement = TimedMeasurement(fakes.pipeline, SIZES, rounds=7, longest_pass=0.5)
    assert measurement.finish().rows == ()
    assert measurement.passes == [(64, 1)]


def test_size_that_no_profile_covers_is_refused_before_anything_is_measured(fakes: LoopBuilder) -> None:
    with pytest.raises(UnsupportedShape, match="1024"):
        BatchMeasurement(fakes.pipeline, [Size(64, 64), Size(1024, 1024)])
    assert fakes.graphs.batches == []
