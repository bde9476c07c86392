"""Outcomes of millions of requests in arrays, and their figures. Knows no fleet."""

from array import array
from collections import Counter

import numpy as np

from benchmarks.harness.distribution import Distribution
from benchmarks.workload.figures import BUCKETS_PER_DECADE, Bucket, Percentiles, RungFigures, ThrottleFigures
from benchmarks.workload.records import Outcome

CODES: tuple[Outcome, ...] = ("ok", "timeout", "throttled", "failed", "cut_off")
ENDURED = (0, 1, 2)  # codes whose latency counts; see `benchmarks.workload.figures`

Seconds = np.ndarray[tuple[int], np.dtype[np.float64]]


class Outcomes:
    """The requests that have ended, in the order of their ends."""

    def __init__(self) -> None:
        self.throttled = 0  # answers that asked to come back
        self._due, self._ended = array("d"), array("d")
        self._codes, self._images = array("b"), array("h")
        self._recent: list[float] = []

    def add(self, due: float, ended: float, outcome: Outcome, images: int) -> None:
        """Record a request."""
        self._due.append(due)
        self._ended.append(ended)
        self._codes.append(CODES.index(outcome))
        self._images.append(images)
        if outcome == "ok":
            self._recent.append(ended - due)

    def take_recent(self) -> tuple[int, float | None]:
        """Return the number of right answers since the last call, and the 95th percentile of their latency."""
        recent, self._recent = self._recent, []
        return len(recent), Distribution.of(recent).p95 if recent else None

    def figures(self, seconds: float, warmup: float) -> RungFigures:
        """Compute the figures of the requests that were due from the end of the warm-up to the end."""
        due, ended = np.frombuffer(self._due), np.frombuffer(self._ended)
        codes, images = np.frombuffer(self._codes, np.int8), np.frombuffer(self._images, np.int16)
        counted = (due >= warmup) & (due < seconds)
        over = counted & (codes != CODES.index("cut_off"))
        right = over & (codes == 0)
        arrived = (codes == 0) & (ended >= warmup) & (ended < seconds)
        latency = (ended - due)[over & np.isin(codes, ENDURED)]
        measured = seconds - warmup
        requests, gave_up = int(over.sum()), int((over & (codes == CODES.index("throttled"))).sum())
        failures = Counter(CODES[code] for code in codes[over & (codes != 0)])
        return RungFigures(
            seconds=seconds,
            warmup_s=warmup,
            requests=requests,
            images=int(images[right].sum()),
            success_percent=100 * float(right.sum()) / requests if requests else None,
            offered_per_s=float(images[counted].sum()) / measured,
            achieved_per_s=float(images[arrived].sum()) / measured,
            latency_s=_percentiles(latency),
            first_byte_s=_percentiles((ended - due)[right]),
            first_preview_s=None,
            queue_s=Percentiles(),
            drawing_s=Percentiles(),
            throttled=ThrottleFigures(self.throttled, self.throttled - gave_up, gave_up, Percentiles()),
            errors=dict(failures),
            wrong_images=0,
            cut_off=int((counted & (codes == CODES.index("cut_off"))).sum()),
            by_kind={},
            timeline=(),
            histogram=_histogram((ended - due)[right]),
        )


def _percentiles(seconds: Seconds) -> Percentiles:
    """Summarise seconds by nearest rank, as `Percentiles.of` does."""
    if not len(seconds):
        return Percentiles()
    ordered = np.sort(seconds)

    def rank(percent: int) -> float | None:
        number = -(-percent * len(ordered) // 100)
        return float(ordered[number - 1]) if number < len(ordered) else None

    return Percentiles(float(np.median(ordered)), rank(95), rank(99), float(ordered.mean()), float(ordered[-1]))


def _histogram(seconds: Seconds) -> tuple[Bucket, ...]:
    if not len(seconds):
        return ()
    numbers = np.ceil(np.round(np.log10(np.maximum(seconds, 1e-3)) * BUCKETS_PER_DECADE, 9)).astype(int)
    counts = np.bincount(numbers - numbers.min())
    return tuple(
        Bucket(10 ** (number / BUCKETS_PER_DECADE), int(count)) for number, count in enumerate(counts, numbers.min())
    )
