"""What Prometheus reads at `/metrics`. Knows counters and their names; not who counts.

Names follow Prometheus' conventions: base units, `_total` for what only grows. Latencies are histograms, so that
percentiles of several servers can be worked out together.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.images.metadata import ImageMetadata
from server.jobs.job import Job
from server.worker.messages import Heartbeat

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)

NOTHING = Heartbeat([], 0, 0, {})

Gauges = Callable[[], Mapping[str, float]]


class Metrics:
    """The counters of one server.

    Args:
        worker: gives the process id of its worker, while there is one.
    """

    def __init__(self, worker: Callable[[], int | None]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        ProcessCollector("zimage_worker", pid=lambda: worker() or "none", registry=registry)
        self._accepted = Counter("zimage_jobs_accepted", "Jobs accepted.", ["api"], registry=registry)
        self._refused = Counter("zimage_jobs_refused", "Requests refused for now.", ["code"], registry=registry)
        self._ended = Counter("zimage_jobs_ended", "Jobs that ended.", ["api", "state", "code"], registry=registry)
        self._job_seconds = Histogram(
            "zimage_job_seconds", "From acceptance to the end.", ["api"], buckets=SECONDS, registry=registry
        )
        self._queue_seconds = Histogram(
            "zimage_job_queue_seconds", "From acceptance to the first step.", buckets=SECONDS, registry=registry
        )
        self._images = Counter("zimage_images", "Images generated.", registry=registry)
        self._pixels = Counter("zimage_pixels", "Pixels generated.", registry=registry)
        self._stage_seconds = Histogram(
            "zimage_stage_seconds", "Of an image, by stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._batch = Histogram(
            "zimage_forward_batch_size", "Images in a forward pass.", buckets=BATCHES, registry=registry
        )
        self._forward_seconds = Counter("zimage_forward_seconds", "Spent in forward passes.", registry=registry)
        self._prompt_cache_requests = Counter(
            "zimage_prompt_cache_requests", "Prompts to encode.", ["cache"], registry=registry
        )
        self._hits, self._misses = (self._prompt_cache_requests.labels(cache) for cache in ("hit", "miss"))
        self._switches = Counter("zimage_lora_switches", "Changes to another LoRA or to none.", registry=registry)
        self._switch_seconds = Counter("zimage_lora_switch_seconds", "Spent in such changes.", registry=registry)
        self._heard = NOTHING

    def watch(self, gauges: Gauges) -> None:
        """Adds gauges, by name, that are read when somebody asks; those that end in _total are counters."""
        self._registry.register(_Gauges(gauges))

    def accepted(self, job: Job) -> None:
        self._accepted.labels(job.api).inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def begun(self, job: Job) -> None:
        """At its first step, in the first attempt."""
        assert job.started is not None
        self._queue_seconds.observe(max(job.started - job.created, 0.0))

    def generated(self, metadata: ImageMetadata) -> None:
        self._images.inc()
        self._pixels.inc(metadata.size.area)
        for stage, seconds in asdict(metadata.seconds).items():
            self._stage_seconds.labels(stage).observe(seconds)

    def ended(self, job: Job) -> None:
        assert job.finished is not None
        self._ended.labels(job.api, job.state.value, job.error.code if job.error else "").inc()
        self._job_seconds.labels(job.api).observe(max(job.finished - job.created, 0.0))

    def passed(self, pulse: Heartbeat) -> None:
        """Forward passes are over. A new worker's counts of prompts begin at 0."""
        for batch, seconds in pulse.passes:
            self._batch.observe(batch)
            self._forward_seconds.inc(seconds)
        before = self._heard if pulse.prompt_cache_misses >= self._heard.prompt_cache_misses else NOTHING
        self._hits.inc(max(pulse.prompt_cache_hits - before.prompt_cache_hits, 0))
        self._misses.inc(pulse.prompt_cache_misses - before.prompt_cache_misses)
        self._heard = pulse

    def switched(self, seconds: float) -> None:
        """Another LoRA, or none, is in the plans."""
        self._switches.inc()
        self._switch_seconds.inc(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges:
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for name, value in self._gauges().items():
            about = name.removeprefix("zimage_").replace("_", " ").capitalize() + "."
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, about, value)
