"""Outcomes of millions of requests in arrays, and their figures. Knows no fleet."""

from array import array
from collections import Counter
from typing import get_args

import numpy as np

from benchmarks.harness.distribution import Distribution
from benchmarks.workload.figures import BUCKETS_PER_DECADE, ENDURED, Bucket, Percentiles, RungFigures, ThrottleFigures
from benchmarks.workload.records import Outcome

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)  # a request has its index

Seconds = np.ndarray[tuple[int], np.dtype[np.float64]]


class Outcomes:
    """The requests that have ended, in the order of their ends."""

    def __init__(self) -> None:
        self._due, self._ended, self._least_wait = array("d"), array("d"), array("d")
        self._codes, self._images, self._throttles = array("b"), array("h"), array("i")
        self._recent: list[float] = []

    def add(
        self, due: float, ended: float, outcome: Outcome, images: int, *, throttles: int = 0, come_back: float = 0.0
    ) -> None:
        """Record a request.

        Args:
            throttles: answers that asked the client to come back.
            come_back: time at which a client that gave up was to come back; see `Record.least_wait`.
        """
        self._due.append(due)
        self._ended.append(ended)
        self._least_wait.append(max(ended, come_back) - due)
        self._codes.append(OUTCOMES.index(outcome))
        self._images.append(images)
        self._throttles.append(throttles)
        if outcome == "ok":
            self._recent.append(ended - due)

    def take_recent(self) -> tuple[int, float | None]:
        """Return the number of right answers since the last call, and the 95th percentile of their latency."""
        recent, self._recent = self._recent, []
        return len(recent), Distribution.of(recent).p95 if recent else None

    def figures(self, seconds: float, warmup: float) -> RungFigures:
        """Compute the figures that `RungFigures.of` has for the same requests, but none by kind and no timeline."""
        due, ended, least_wait = np.asarray(self._due), np.asarray(self._ended), np.asarray(self._least_wait)
        codes, images, throttles = np.asarray(self._codes), np.asarray(self._images), np.asarray(self._throttles)
        is_due = (due >= warmup) & (due < seconds)
        is_over = is_due & ~_are(codes, "cut_off")
        is_right = is_over & _are(codes, "ok")
        is_in_time = _are(codes, "ok") & (ended >= warmup) & (ended < seconds)
        latency, measured = (ended - due)[is_right], seconds - warmup
        requests, answers = int(is_over.sum()), int(throttles[is_due].sum())
        gave_up = int((is_due & _are(codes, "throttled", "refused")).sum())
        return RungFigures(
            seconds=seconds,
            warmup_s=warmup,
            requests=requests,
            images=int(images[is_right].sum()),
            success_percent=100 * float(is_right.sum()) / requests if requests else None,
            offered_per_s=float(images[is_due].sum()) / measured,
            achieved_per_s=float(images[is_in_time].sum()) / measured,
            latency_s=_percentiles(least_wait[is_over & _are(codes, *ENDURED)]),
            first_byte_s=_percentiles(latency),
            first_preview_s=None,
            queue_s=Percentiles(),
            drawing_s=Percentiles(),
            throttled=ThrottleFigures(answers, answers - gave_up, gave_up, Percentiles()),
            errors=dict(Counter(OUTCOMES[code] for code in codes[is_over & ~is_right])),
            wrong_images=int((is_over & _are(codes, "wrong_image")).sum()),
            cut_off=int((is_due & ~is_over).sum()),
            by_kind={},
            timeline=(),
            histogram=_histogram(latency),
        )


def _are(codes: np.ndarray[tuple[int], np.dtype[np.int8]], *outcomes: str) -> np.ndarray[tuple[int], np.dtype[np.bool]]:
    """Return the mask of the requests that have one of some outcomes."""
    return np.isin(codes, [OUTCOMES.index(outcome) for outcome in outcomes])


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
