"""The metrics that Prometheus reads at `/metrics`. Knows names and counters; not who counts.

Names follow Prometheus' conventions: base units, `_total` for counters. Latencies are histograms, so that percentiles
over several servers can be computed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.images.metadata import ImageMetadata
from engine.stages import StageTimes
from server.errors import JobRefused
from server.jobs.job import Job, JobState
from server.worker.messages import Heartbeat

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
BATCHES = tuple(range(1, 17))

REFUSALS = (*(kind.code for kind in JobRefused.__subclasses__()), "rate_limit_exceeded")  # codes of refusals
FAILURES = (  # codes of jobs' errors
    "deadline_exceeded",
    "device_error",
    "internal_error",
    "invalid_value",
    "lora_unavailable",
    "non_finite_output",
    "worker_lost",
    "worker_unavailable",
)

NO_HEARTBEAT = Heartbeat([], 0, 0, {})

Gauges = Callable[[], Mapping[str, float | Mapping[str, float]]]  # by name; those of devices by device


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._processes = _WorkerProcesses()
        self._last_heartbeats: dict[str, Heartbeat] = {}  # by device
        ProcessCollector(registry=self._registry)
        self._registry.register(self._processes)
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, buckets=SECONDS, registry=self._registry)
        self._accepted = counter("zimage_jobs_accepted", "Accepted jobs.", ["api"])
        self._refused = counter("zimage_jobs_refused", "Refused jobs.", ["code"])
        self._ended = counter("zimage_jobs_ended", "Ended jobs.", ["api", "state", "code"])
        self._job_seconds = histogram("zimage_job_seconds", "From acceptance to the end of a job.", ["api"])
        self._queue_seconds = histogram("zimage_job_queue_seconds", "From acceptance to the first step of a job.")
        self._images = counter("zimage_images", "Generated images.")
        self._pixels = counter("zimage_pixels", "Generated pixels.")
        self._stage_seconds = histogram("zimage_stage_seconds", "Duration of a stage of an image.", ["stage"])
        self._batch = histogram("zimage_forward_batch_size", "Images in a forward pass.", buckets=BATCHES)
        self._device_images = counter("zimage_device_images", "Images generated on a device.", ["device"])
        self._forward_seconds = counter("zimage_forward_seconds", "Time in forward passes.", ["device"])
        self._batch_seconds = counter("zimage_forward_batch_seconds", "Time in forward passes, by images.", ["batch"])
        prompts = counter("zimage_prompt_cache_requests", "Prompts to encode, by hit or miss.", ["cache"])
        self._hits, self._misses = prompts.labels("hit"), prompts.labels("miss")
        self._switches = counter("zimage_lora_switches", "Changes to another LoRA or to none.")
        self._switch_seconds = counter("zimage_lora_switch_seconds", "Time in such changes.")
        for refusal in REFUSALS:
            self._refused.labels(refusal)
        for stage in fields(StageTimes):
            self._stage_seconds.labels(stage.name)
        for batch in BATCHES:
            self._batch_seconds.labels(batch)

    def add_api(self, api: str) -> None:
        """Begin the counters of an API at 0, so that Prometheus' `rate` sees the first job and the first failure."""
        self._accepted.labels(api)
        self._job_seconds.labels(api)
        self._ended.labels(api, JobState.DONE.value, "")
        self._ended.labels(api, JobState.CANCELLED.value, "")
        for code in FAILURES:
            self._ended.labels(api, JobState.FAILED.value, code)

    def add_device(self, device: str, worker_pid: Callable[[], int | None]) -> None:
        """Add a device. `worker_pid`: returns the process id of its worker, while there is one."""
        self._processes.pids[device] = worker_pid
        self._device_images.labels(device)
        self._forward_seconds.labels(device)

    def add_gauges(self, gauges: Gauges) -> None:
        """Add gauges by name, read at each request; those whose names end in _total are counters."""
        self._registry.register(_Gauges(gauges))

    def add_collector(self, collector: Collector) -> None:
        """Add metrics with labels of their own."""
        self._registry.register(collector)

    def job_accepted(self, job: Job) -> None:
        self._accepted.labels(job.api).inc()

    def job_refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def job_started(self, job: Job) -> None:
        """Count the first attempt of a job."""
        assert job.started is not None
        self._queue_seconds.observe(max(job.started - job.created, 0.0))

    def device_image(self, device: str) -> None:
        """Count an image of a device."""
        self._device_images.labels(device).inc()

    def image_finished(self, metadata: ImageMetadata) -> None:
        self._images.inc()
        self._pixels.inc(metadata.size.area)
        for stage, seconds in asdict(metadata.seconds).items():
            self._stage_seconds.labels(stage).observe(seconds)

    def job_ended(self, job: Job) -> None:
        assert job.finished is not None
        self._ended.labels(job.api, job.state.value, job.error.code if job.error else "").inc()
        self._job_seconds.labels(job.api).observe(max(job.finished - job.created, 0.0))

    def heartbeat(self, device: str, message: Heartbeat) -> None:
        """Count forward passes and uses of the prompt cache, whose counts start at 0 in a new worker."""
        for batch, seconds in message.passes:
            self._batch.observe(batch)
            self._forward_seconds.labels(device).inc(seconds)
            self._batch_seconds.labels(batch).inc(seconds)
        before = self._last_heartbeats.get(device, NO_HEARTBEAT)
        if message.prompt_cache_misses < before.prompt_cache_misses:  # of the worker before this one
            before = NO_HEARTBEAT
        self._hits.inc(max(message.prompt_cache_hits - before.prompt_cache_hits, 0))
        self._misses.inc(message.prompt_cache_misses - before.prompt_cache_misses)
        self._last_heartbeats[device] = message

    def lora_switched(self, seconds: float) -> None:
        self._switches.inc()
        self._switch_seconds.inc(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges:
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for name, value in self._gauges().items():
            if value == {}:
                continue
            about = name.removeprefix("zimage_").replace("_", " ").capitalize() + "."
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            if isinstance(value, Mapping):
                metric = family(name, about, labels=["device"])
                for device, its_value in value.items():
                    metric.add_metric([device], its_value)
                yield metric
            else:
                yield family(name, about, value)


class _WorkerProcesses:
    """CPU time, memory and descriptors of the worker processes, by device."""

    def __init__(self) -> None:
        self.pids: dict[str, Callable[[], int | None]] = {}

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for device, worker_pid in self.pids.items():
            pid = worker_pid() or "none"
            for metric in ProcessCollector("zimage_worker", pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                total = found.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                total.samples += [sample._replace(labels={"device": device}) for sample in metric.samples]
        return iter(found.values())
