"""Figures of a rung, a time of constant load, from the records of its requests."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from benchmarks.harness.distribution import Distribution
from benchmarks.workload.records import Record

BUCKETS_PER_DECADE = 10  # of the histogram
SHORT = 120.0  # seconds; the timeline of a longer rung has a point every 10 s instead of every second
MAX_ERRORS = 20  # different texts
ENDURED = ("ok", "timeout", "throttled", "refused")  # outcomes whose latency counts


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds of requests. All are None without requests; a percentile also where it would equal the maximum."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    mean: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> Self:
        """Summarise seconds; None stands for a request that has none."""
        known = [each for each in seconds if each is not None]
        if not known:
            return cls()
        found = Distribution.of(known)
        return cls(found.p50, found.p95, found.p99, sum(known) / len(known), found.slowest)


class ThrottleFigures(msgspec.Struct, frozen=True):
    """Answers with 429 or 503 that asked to come back later.

    Attributes:
        answers: all of them.
        honoured: those after which the client waited as long as it was asked to.
        gave_up: requests whose client lost its patience.
    """

    answers: int
    honoured: int
    gave_up: int
    retry_after_s: Percentiles


class KindFigures(msgspec.Struct, frozen=True):
    """Figures of the requests of one kind."""

    requests: int
    success_percent: float | None
    latency_s: Percentiles


class Moment(msgspec.Struct, frozen=True):
    """A point of the timeline: what ended from `at_s` to the next point. `images` and the others are counts."""

    at_s: float
    images: int
    p50_s: float | None
    p95_s: float | None
    errors: int
    throttled: int


class Bucket(msgspec.Struct, frozen=True):
    """Requests with a latency up to `up_to_s` and above the bound of the bucket before."""

    up_to_s: float
    count: int


class RungFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the requests that were due after the warm-up and before the end of a rung.

    Attributes:
        seconds: length of the rung with its warm-up.
        warmup_s: seconds that are left out at its beginning, except in the timeline.
        requests: those that ended; `cut_off` ones are not among them.
        images: right images of these requests.
        success_percent: share of requests that got the right images; None without requests.
        offered_per_s: images per second that were asked for.
        achieved_per_s: right images per second that arrived from the end of the warm-up to the end of the rung.
        latency_s: of requests that got the right images or whose client gave up waiting (see `Record.least_wait`).
            Without the latter, a server would look the faster the more requests it loses.
        late_s: by which the load generator sent requests after they were due, in an open loop. Latency includes it.
        first_preview_s: None if no request had a preview.
        queue_s, drawing_s: as the server states them for the requests that it answered.
        errors: number of requests by the text of their error.
    """

    seconds: float
    warmup_s: float
    requests: int
    images: int
    success_percent: float | None
    offered_per_s: float
    achieved_per_s: float
    latency_s: Percentiles
    late_s: Percentiles = Percentiles()
    first_byte_s: Percentiles
    first_preview_s: Percentiles | None
    queue_s: Percentiles
    drawing_s: Percentiles
    throttled: ThrottleFigures
    errors: dict[str, int]
    wrong_images: int
    cut_off: int
    by_kind: dict[str, KindFigures]
    timeline: tuple[Moment, ...]
    histogram: tuple[Bucket, ...]

    @classmethod
    def of(cls, records: Sequence[Record], seconds: float, warmup: float = 0.0) -> Self:
        """Compute the figures of a rung from all of its records.

        Args:
            seconds: length of the rung with its warm-up.
            warmup: seconds at its beginning that are left out.

        Raises:
            ValueError: the warm-up is as long as the rung.
        """
        if not warmup < seconds:
            raise ValueError(f"the warm-up must be shorter than the rung of {seconds:g} s, got {warmup:g} s")
        due = [record for record in records if warmup <= record.due < seconds]
        ended = [record for record in due if record.outcome != "cut_off"]
        right = [record for record in ended if record.outcome == "ok"]
        previews = Percentiles.of(record.first_preview for record in right)
        errors = Counter(record.error or record.outcome for record in ended if record.outcome != "ok")
        return cls(
            seconds=seconds,
            warmup_s=warmup,
            requests=len(ended),
            images=sum(record.images for record in right),
            success_percent=_success(ended),
            offered_per_s=sum(record.images for record in due) / (seconds - warmup),
            achieved_per_s=_achieved(records, seconds, warmup) / (seconds - warmup),
            latency_s=_latency(ended),
            late_s=Percentiles.of(record.sent - record.due for record in ended),
            first_byte_s=Percentiles.of(record.first_byte for record in right),
            first_preview_s=None if previews.max is None else previews,
            queue_s=Percentiles.of(record.queue for record in right),
            drawing_s=Percentiles.of(record.drawing for record in right),
            throttled=_throttles(due),
            errors=dict(errors.most_common(MAX_ERRORS)),
            wrong_images=sum(record.outcome == "wrong_image" for record in ended),
            cut_off=len(due) - len(ended),
            by_kind=_by_kind(ended),
            timeline=_timeline(records, seconds),
            histogram=_histogram(record.latency for record in right),
        )


def _success(ended: Sequence[Record]) -> float | None:
    return 100 * sum(record.outcome == "ok" for record in ended) / len(ended) if ended else None


def _latency(ended: Iterable[Record]) -> Percentiles:
    return Percentiles.of(record.least_wait for record in ended if record.outcome in ENDURED)


def _achieved(records: Sequence[Record], seconds: float, warmup: float) -> int:
    """Return the right images that arrived in the measured part of the rung."""
    return sum(record.images for record in records if record.outcome == "ok" and warmup <= record.ended < seconds)


def _throttles(due: Sequence[Record]) -> ThrottleFigures:
    found = [throttle for record in due for throttle in record.throttles]
    return ThrottleFigures(
        answers=len(found),
        honoured=sum(throttle.is_honoured for throttle in found),
        gave_up=sum(record.outcome in ("throttled", "refused") for record in due),
        retry_after_s=Percentiles.of(throttle.retry_after for throttle in found),
    )


def _by_kind(ended: Sequence[Record]) -> dict[str, KindFigures]:
    kinds: defaultdict[str, list[Record]] = defaultdict(list)
    for record in ended:
        kinds[record.kind].append(record)
    return {name: KindFigures(len(own), _success(own), _latency(own)) for name, own in sorted(kinds.items())}


def _timeline(records: Sequence[Record], seconds: float) -> tuple[Moment, ...]:
    width = 1.0 if seconds <= SHORT else 10.0
    ended: defaultdict[int, list[Record]] = defaultdict(list)
    throttled: Counter[int] = Counter()
    for record in records:
        if record.outcome != "cut_off":
            ended[int(record.ended // width)].append(record)
        throttled.update(int(throttle.at // width) for throttle in record.throttles)
    last = max([math.ceil(seconds / width) - 1, *ended, *throttled])
    return tuple(_moment(number * width, ended[number], throttled[number]) for number in range(last + 1))


def _moment(at: float, ended: Sequence[Record], throttled: int) -> Moment:
    right = [record for record in ended if record.outcome == "ok"]
    latency = Percentiles.of(record.latency for record in right)
    images = sum(record.images for record in right)
    return Moment(at, images, latency.p50, latency.p95, len(ended) - len(right), throttled)


def _histogram(latencies: Iterable[float]) -> tuple[Bucket, ...]:
    """Count latencies in buckets whose bounds grow by the same factor, from the first to the last that has any."""
    counts = Counter(math.ceil(round(math.log10(max(latency, 1e-3)) * BUCKETS_PER_DECADE, 9)) for latency in latencies)
    if not counts:
        return ()
    numbers = range(min(counts), max(counts) + 1)
    return tuple(Bucket(10 ** (number / BUCKETS_PER_DECADE), counts[number]) for number in numbers)
