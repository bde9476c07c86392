"""Seconds of each stage from a report of `zimage-bench latency` or `zimage-bench load`, also between measured points.

Between two measured sizes or batches the seconds are interpolated; beyond them they grow as the area or the batch.
"""

import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from benchmarks.capacity.devices.reports import LatencyReport, LoadReport, Percentiles, Rung, StageTime
from engine.errors import InvalidRequest
from engine.size import Size

Points = tuple[tuple[float, float], ...]  # (x, seconds), ascending in x

PRODUCT = "zimage-trt"
TOKEN_AREA = 256  # pixels of an image token: 16 x 16
NORMAL_P95 = 1.645  # standard deviations


@dataclass(frozen=True, slots=True)
class MeasuredTimes:
    """Seconds of each stage on the device that was measured.

    Attributes:
        passes: seconds of a forward pass by batch, for each measured area in pixels.
        prompt_length: padded tokens of the prompts that were measured; None if the report does not say.
        encoder: seconds of the prompt encoder for one prompt.
        decoder: seconds of the VAE decoder by area.
        spread: standard deviation of the logarithm of a pass's seconds.
        finishing: seconds of making an image file, beside the next forward passes.
        overhead: seconds of HTTP and of the queue for one request.
        between: seconds between two forward passes in which the device waits.
    """

    passes: tuple[tuple[int, Points], ...]
    prompt_length: int | None
    encoder: float
    decoder: Points
    spread: float = 0.0
    finishing: float = 0.0
    overhead: float = 0.0
    between: float = 0.0

    @classmethod
    def of_latency(cls, report: LatencyReport) -> Self:
        """Take the times of a report of `zimage-bench latency`.

        Raises:
            InvalidRequest: zimage-trt is not among the runners that were measured.
        """
        cases = report.figures.cases
        rows = [
            (case, runner.stages_s)
            for case in cases
            for name, runner in case.runners.items()
            if name.startswith(PRODUCT) and runner.stages_s is not None
        ]
        if not rows:
            names = ", ".join(sorted({name for case in cases for name in case.runners})) or "nothing"
            raise InvalidRequest(
                f"the latency report has no times of {PRODUCT}, only of {names}; measure with --engines",
                "service_times",
            )
        passes: dict[int, dict[float, float]] = {}
        decoder: dict[float, float] = {}
        for case, stages in rows:
            area = case.width * case.height
            passes.setdefault(area, {})[case.batch] = stages.step.p50
            if case.batch == min(passes[area]):
                decoder[area] = (stages.decode.p50 + stages.copy.p50) / case.batch
        spreads = [spread for _, stages in rows if (spread := _spread(stages.step)) is not None]
        return cls(
            tuple((area, tuple(sorted(points.items()))) for area, points in sorted(passes.items())),
            rows[0][0].prompt_tokens,
            min(stages.prompt_encoder.p50 / case.batch for case, stages in rows),
            tuple(sorted(decoder.items())),
            statistics.median(spreads) if spreads else 0.0,
            statistics.median(stages.encode.p50 / case.batch for case, stages in rows),
        )

    @classmethod
    def of_load(cls, report: LoadReport, default_steps: int) -> Self:
        """Take the times of a report of `zimage-bench load`: stages of all rungs, the rest of the calmest answered one.

        Args:
            default_steps: forward passes of a request that does not say how many.

        Raises:
            InvalidRequest: the report has no pass times of zimage-serve, or kinds of requests of several sizes.
        """
        rungs, kinds = report.figures.rungs, report.figures.workload.mix
        passes = _pass_seconds(rungs)
        area = _only_area({kind.size for kind in kinds}, passes)
        calm = min((rung for rung in rungs if rung.drawing_s.mean), key=lambda rung: rung.load, default=None)
        if calm is None or calm.latency_s.mean is None or calm.drawing_s.mean is None:
            raise InvalidRequest(
                "the load report has no request that zimage-serve answered; measure again with fewer users",
                "service_times",
            )
        alone, stages = (calm.server.stage_s if calm.server else None) or {}, _stage_seconds(rungs)
        weights = [kind.weight for kind in kinds]
        steps = statistics.fmean([(kind.steps or default_steps) * kind.images for kind in kinds], weights)
        images = statistics.fmean([kind.images for kind in kinds], weights)
        queue, drawing = calm.queue_s.mean or 0.0, calm.drawing_s.mean
        rest = max(0.0, drawing - steps * _between(passes, 1.0)) / images
        between = alone.get("denoiser", 0.0) * images / steps - _between(passes, 1.0)
        return cls(
            passes=((area, passes),),
            prompt_length=None,
            encoder=stages.get("prompt_encoder", 0.0),
            decoder=((area, stages.get("vae_decoder", rest)),),
            spread=(_spread(calm.drawing_s) or 0.0) * math.sqrt(steps),
            finishing=stages.get("encode", 0.0),
            overhead=max(0.0, calm.latency_s.mean - queue - drawing),
            between=max(0.0, between),
        )

    def pass_seconds(self, size: Size, batch: int, prompt_length: int) -> float:
        """Return the seconds of a forward pass of `batch` images with prompts of `prompt_length` padded tokens."""
        seconds = _between(tuple((float(area), _between(points, batch)) for area, points in self.passes), size.area)
        if self.prompt_length is None:
            return seconds
        image = size.area / TOKEN_AREA
        return seconds * (image + prompt_length) / (image + self.prompt_length)

    def prompt_encoder_seconds(self, prompt_length: int) -> float:
        """Return the seconds of encoding one prompt, in proportion to its length."""
        return self.encoder * (prompt_length / self.prompt_length if self.prompt_length else 1.0)

    def decode_seconds(self, size: Size) -> float:
        """Return the seconds of the VAE decoder for one image."""
        return _between(self.decoder, size.area)

    def encode_image_seconds(self, size: Size) -> float:
        """Return the seconds of the VAE encoder: taken to be the decoder's, which does somewhat more work."""
        return self.decode_seconds(size)


def _only_area(sizes: set[Size], passes: Points) -> int:
    """Return the area of all kinds of a load report that has pass times."""
    if not passes:
        raise InvalidRequest(
            "the load report has no times of forward passes; measure zimage-serve, whose /metrics have them",
            "service_times",
        )
    if len(areas := {size.area for size in sizes}) > 1:
        raise InvalidRequest(
            f"the load report has pass times of {len(areas)} sizes together; measure a load of one size, "
            "or give a report of zimage-bench latency",
            "service_times",
        )
    return areas.pop()


def _pass_seconds(rungs: Sequence[Rung]) -> Points:
    """Return the seconds of a forward pass by batch, the mean over the passes of all rungs."""
    seconds: defaultdict[float, float] = defaultdict(float)
    passes: defaultdict[float, float] = defaultdict(float)
    for server in filter(None, (rung.server for rung in rungs)):
        counts = (server.batch.counts if server.batch else None) or {}
        for by_batch in (server.pass_s or {}).values():
            for batch, each in by_batch.items():
                count = counts.get(batch, 1)
                seconds[batch] += count * each
                passes[batch] += count
    return tuple((batch, total / passes[batch]) for batch, total in sorted(seconds.items()))


def _stage_seconds(rungs: Sequence[Rung]) -> dict[str, float]:
    """Return the mean seconds of each stage of an image over the images of all rungs."""
    seconds: defaultdict[str, float] = defaultdict(float)
    images: defaultdict[str, float] = defaultdict(float)
    for rung in rungs:
        for stage, each in ((rung.server.stage_s if rung.server else None) or {}).items():
            seconds[stage] += rung.images * each
            images[stage] += rung.images
    return {stage: total / images[stage] for stage, total in seconds.items() if images[stage]}


def _spread(seconds: StageTime | Percentiles) -> float | None:
    """Return the deviation of the logarithm that p50 and p95 have; None without a p95."""
    return math.log(seconds.p95 / seconds.p50) / NORMAL_P95 if seconds.p50 and seconds.p95 else None


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the seconds at x: linear between points, proportional below the first and above the last one."""
    index = bisect_left(points, (x, -math.inf))
    if index == len(points) or index == 0:
        nearest, seconds = points[min(index, len(points) - 1)]
        return seconds * x / nearest
    (low, below), (high, above) = points[index - 1], points[index]
    return below + (above - below) * (x - low) / (high - low)
