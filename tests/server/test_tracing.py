"""Tests of traces: one trace from HTTP to each stage, what the environment asks for, and no cost without."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from fakes.jobs import METADATA, image, job
from fakes.jobs_mode import FleetServices
from fakes.loop import FakeLoop
from fakes.processes import PYTHONPATH
from fakes.server import serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from engine.stages import StageTimes
from server import tracing
from server.jobs.job import JobError, JobState
from server.jobs.job_traces import JobTraces

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
BODY = {"prompt": "a red circle", "size": "64x64", "n": 2}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    with tracing.started("tests", exporter):
        yield exporter


def spans(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def parents(exporter: InMemorySpanExporter) -> dict[str, str]:
    """Return the name of the parent span by name of a span."""
    finished = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in finished if span.context}
    return {span.name: names[span.parent.span_id] for span in finished if span.parent and span.parent.span_id in names}


@pytest.fixture(params=["embedded", "redis"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have `serving` generate images in the server's own worker, or in a fleet."""
    if request.param == "redis":
        new_database = request.getfixturevalue("postgres").fresh_url
        services = FleetServices(request.getfixturevalue("redis_url"), new_database)
        monkeypatch.setattr(FleetServices, "current", services)
    return str(request.param)


def test_request_is_one_trace_from_http_to_each_stage(exporter: InMemorySpanExporter, mode: str) -> None:
    with serving(FakeLoop()) as server:
        headers = {"traceparent": TRACEPARENT}
        answer = httpx.post(f"{server}/v1/images/generations", json=BODY, headers=headers, timeout=60)
        assert answer.status_code == 200
        httpx.get(f"{server}/health")
    found = spans(exporter)
    request, claim = "POST /v1/images/generations", {} if mode == "embedded" else {"claim": 1}
    stages = dict.fromkeys(STAGES_OF_THE_FAKE, 2)
    assert {name: len(same) for name, same in found.items()} == (
        {request: 1, "queue": 1, "generate": 1, "image": 2} | claim | stages
    )
    assert {span.context.trace_id for same in found.values() for span in same if span.context} == {int(TRACE, 16)}
    assert parents(exporter) == (
        {"queue": request, "generate": request, "image": "generate"}
        | dict.fromkeys(claim, request)
        | dict.fromkeys(stages, "image")
    )
    (http,), (generate,) = found[request], found["generate"]
    assert http.parent is not None and http.parent.span_id == int("b7ad6b7169203331", 16)
    assert http.attributes is not None and generate.attributes is not None
    assert http.attributes["http.response.status_code"] == 200
    assert http.attributes["zimage.request_id"] == answer.headers["x-request-id"]
    assert generate.attributes["zimage.job"] == answer.headers["x-job-id"]
    assert "a red circle" not in "".join(span.to_json() for same in found.values() for span in same)


STAGES_OF_THE_FAKE = ("encode",)


def test_request_without_a_trace_begins_one_and_hostile_headers_are_ignored(exporter: InMemorySpanExporter) -> None:
    with serving(FakeLoop()) as server:
        for traceparent in ("x" * 5000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-é".encode()):
            headers = [(b"traceparent", traceparent if isinstance(traceparent, bytes) else traceparent.encode())]
            assert httpx.get(f"{server}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{server}/no/such/path").status_code == 404
    found = spans(exporter)
    assert {name: len(same) for name, same in found.items()} == {"GET /v1/models": 3, "GET": 1}
    assert all(span.parent is None for same in found.values() for span in same)


def attempt(number: int) -> dict[str, object]:
    return {"attempts": number, "started": 2.0, "state": JobState.RUNNING, "trace": TRACEPARENT}


def test_lost_worker_makes_two_attempts_in_one_trace(exporter: InMemorySpanExporter) -> None:
    traces, id = JobTraces(), "job_1"
    traces.started(job(id=id, **attempt(1)))
    traces.stopped(job(id=id, **attempt(1)), "the worker was lost")
    traces.started(job(id=id, **attempt(2)))
    traces.image_finished(job(id=id, **attempt(2)), image())
    ended = attempt(2) | {"state": JobState.FAILED, "error": JobError("device_error", "the GPU fell off the bus")}
    traces.ended(job(id=id, **ended))
    found = spans(exporter)
    first, second = found["generate"]
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "the worker was lost")
    assert (second.status.status_code, second.status.description) == (StatusCode.ERROR, "device_error")
    assert len(found["queue"]) == 1 and len(found["image"]) == 1
    assert parents(exporter) == {"image": "generate", "denoiser": "image"}


def test_stages_of_an_image_lie_end_to_end(exporter: InMemorySpanExporter) -> None:
    seconds = StageTimes(tokenize=0.5, prompt_encoder=1, passes=2, denoiser=4, vae_decoder=0.25, encode=0.125)
    traces = JobTraces()
    traces.started(job(id="job_1", **attempt(1)))
    traces.image_finished(job(id="job_1", **attempt(1)), replace(image(), metadata=replace(METADATA, seconds=seconds)))
    (whole,), *stages = (spans(exporter).pop(name) for name in ("image", *ORDER))
    began = whole.start_time
    for (stage,) in stages:
        assert stage.start_time and began and stage.end_time and abs(stage.start_time - began) < 1000, "nanoseconds"
        assert (stage.end_time - stage.start_time) / 1e9 == pytest.approx(getattr(seconds, stage.name), abs=1e-6)
        began = stage.end_time
    assert whole.end_time and began and abs(whole.end_time - began) < 1000
    assert whole.attributes and whole.attributes["zimage.passes_seconds"] == 2
    assert {span.name for span in exporter.get_finished_spans()} == {"queue", "image", *ORDER}, "no stage that took 0 s"


ORDER = ("tokenize", "prompt_encoder", "denoiser", "vae_decoder", "encode")


def test_cancelled_job_that_never_began_has_its_time_in_the_queue(exporter: InMemorySpanExporter) -> None:
    JobTraces().ended(job(id="job_1", trace=TRACEPARENT, state=JobState.CANCELLED))
    (queue,) = exporter.get_finished_spans()
    assert queue.name == "queue" and queue.attributes is not None
    assert queue.attributes["zimage.state"] == "cancelled"


def test_finished_jobs_leave_no_spans_in_memory(exporter: InMemorySpanExporter) -> None:
    traces = JobTraces()
    for number in range(10):
        traces.started(job(id=f"job_{number}", **attempt(1)))
        traces.ended(job(id=f"job_{number}", **attempt(1) | {"state": JobState.DONE}))
    assert traces._attempts == {} and len(spans(exporter)["generate"]) == 10


@pytest.mark.parametrize(
    ("variables", "is_traced"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, False),
    ],
)
def test_environment_decides(variables: dict[str, str], is_traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with tracing.started("tests"):
        assert (tracing.active() is not None) is is_traced
        assert tracing.traceparent() is None, "no request is being handled"
    assert tracing.active() is None


class Collector(HTTPServer):
    """A receiver of OTLP that keeps the spans it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.requests: list[ExportTraceServiceRequest] = []


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_spans_reach_an_otlp_receiver_with_the_names_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
            monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=tests")
            with tracing.started("zimage-tests"):
                JobTraces().ended(job(id="job_1", trace=TRACEPARENT))
        finally:
            collector.shutdown()
    (sent,) = collector.requests
    (resource,) = sent.resource_spans
    attributes = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert attributes["service.name"] == "zimage-tests" and attributes["deployment.environment"] == "tests"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "queue" and span.trace_id.hex() == TRACE


def test_sampler_of_the_environment_holds_for_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    exporter = InMemorySpanExporter()
    with tracing.started("tests", exporter):
        traces = JobTraces()
        traces.started(job(id="a", **attempt(1) | {"trace": None}))
        traces.ended(job(id="a", **attempt(1) | {"trace": None, "state": JobState.DONE}))
        assert exporter.get_finished_spans() == ()
        traces.started(job(id="b", **attempt(1)))
        traces.ended(job(id="b", **attempt(1) | {"state": JobState.DONE}))
    assert {span.name for span in exporter.get_finished_spans()} == {"queue", "generate"}


def test_without_tracing_nothing_is_imported_or_kept() -> None:
    # FastAPI imports OpenTelemetry's interfaces, if they are installed
    program = """
import sys
from fakes.jobs import image, job
import server.app, server.cli
from server import tracing
from server.jobs.job_traces import JobTraces
with tracing.started("tests"):
    traces = JobTraces()
    traces.started(job())
    traces.image_finished(job(), image())
    traces.ended(job())
    assert traces._attempts == {} and tracing.traceparent() is None
print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
"""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert said.stdout == "[]\n", said.stderr


def test_missing_package_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with tracing.started("tests"):
        assert tracing.active() is None
    assert "pip install '.[tracing]'" in caplog.text


def test_current_request_is_passed_on_to_the_job(exporter: InMemorySpanExporter) -> None:
    active = tracing.active()
    assert active is not None

    async def handle() -> str | None:
        with active.request(TRACEPARENT, {}):
            await asyncio.sleep(0)
            return tracing.traceparent()

    passed_on = asyncio.run(handle())
    (request,) = exporter.get_finished_spans()
    assert request.context is not None
    assert passed_on == f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert tracing.traceparent() is None
