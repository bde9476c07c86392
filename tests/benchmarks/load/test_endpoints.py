"""Every endpoint that a load can go to: those of zimage-serve, and the image endpoints of SGLang and vLLM-Omni."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes.image_server import image_server
from fakes.loop import FakeLoop
from fakes.manifest import MANIFEST
from fakes.server import serving
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.load.client.cases import make_cases
from benchmarks.load.client.connection import Connection
from benchmarks.load.client.endpoints import ENDPOINTS
from benchmarks.load.client.fingerprints import ImageCheck
from benchmarks.load.client.references import draw_references, model_info
from benchmarks.load.client.request import Request, Session
from benchmarks.load.load_run import run_load
from benchmarks.load.plan import LoadOptions, Rung
from benchmarks.workload.mix import Mix, RequestKind
from benchmarks.workload.records import Record
from engine.images.generated import GeneratedImage

KINDS = {
    "one": RequestKind(name="one", width=64, height=96),
    "two": RequestKind(name="two", width=64, height=64, images=2, steps=3, priority="batch", deadline=30.0),
    "edit": RequestKind(name="edit", width=64, height=64, edit=True),
}


class StripedLoop(FakeLoop):
    """Draws stripes instead of plain colours, which a load takes for a broken image."""

    def _image(self, *arguments: Any) -> GeneratedImage:
        image = super()._image(*arguments)
        pixels = np.array(image.pixels)
        pixels[::4] = (image.seed * 37 % 256, 255 - image.seed * 37 % 256, 128)
        return replace(image, pixels=pixels)


@pytest.fixture(scope="module")
def zimage() -> Iterator[str]:
    with serving(StripedLoop(), manifest=MANIFEST) as url:
        yield url


def ask(url: str, endpoint: str, kind: RequestKind, headers: dict[str, str] | None = None) -> Record:
    """Draw the reference of a case at the OpenAI endpoint, and then ask another endpoint for the same case."""
    (case,) = make_cases(Mix((kind,)), 1)
    session = Session(url, ENDPOINTS["images"], headers or {}, patience=10.0, timeout=10.0)
    check = ImageCheck(draw_references(session, [case]))
    session = replace(session, endpoint=ENDPOINTS[endpoint], require_right=check.require_right)
    with Connection(url) as connection:
        return Request(session, case).run(connection)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_draws_the_same_images(zimage: str, endpoint: str, kind: str) -> None:
    record = ask(zimage, endpoint, KINDS[kind])
    assert (record.outcome, record.error, record.images) == ("ok", "", KINDS[kind].images)
    assert record.first_byte is not None


@pytest.mark.parametrize("endpoint", ["images", "generate"])
def test_zimage_serve_tells_the_times_of_queue_and_drawing(zimage: str, endpoint: str) -> None:
    record = ask(zimage, endpoint, KINDS["one"])
    assert record.queue is not None and record.drawing is not None


def test_stream_has_a_preview_before_its_image() -> None:
    with serving(StripedLoop(0.1), manifest=MANIFEST) as url:  # a preview that is late is left out
        record = ask(url, "stream", RequestKind(name="slow", width=64, height=64, steps=4))
    assert record.first_preview is not None and record.first_preview < record.latency


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_body_that_the_server_refuses_is_a_failure_with_its_code(zimage: str, endpoint: str) -> None:
    (case,) = make_cases(Mix((RequestKind(name="lora", width=64, height=64, lora="unknown"),)), 1)
    session = Session(zimage, ENDPOINTS[endpoint], {}, patience=0.0, timeout=10.0)
    with Connection(zimage) as connection:
        record = Request(session, case).run(connection)
    assert (record.outcome, record.status) == ("failed", 400)
    assert "lora" in record.error or "invalid" in record.error


def test_model_info_tells_zimage_serve_from_others(zimage: str) -> None:
    assert (model_info(zimage, {}) or {})["plan_id"] == MANIFEST.plan_id
    with image_server() as (_, url):
        assert model_info(url, {}) is None


class SglangRequest(BaseModel):
    """Fields of `ImageGenerationsRequest` in SGLang (multimodal_gen/runtime/entrypoints/openai/protocol.py)."""

    model_config = ConfigDict(extra="forbid")  # SGLang ignores others; a load should send none

    prompt: str
    model: str | None = None
    n: int | None = 1
    response_format: str | None = "url"
    size: str | None = "1024x1024"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = 1024
    generator_device: str | None = "cuda"
    negative_prompt: str | None = None


class VllmOmniRequest(BaseModel):
    """Fields of `ImageGenerationRequest` in vLLM-Omni (entrypoints/openai/protocol/images.py)."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    model: str | None = None
    n: int = Field(default=1, ge=1, le=10)
    size: str | None = None
    response_format: str = Field(default="b64_json", pattern="^(b64_json|file)$")
    num_inference_steps: int | None = Field(default=None, ge=1, le=200)
    guidance_scale: float | None = Field(default=None, ge=0, le=20)
    seed: int | None = None
    lora: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("schema", "more", "drawing"),
    [
        (SglangRequest, {"id": "a", "created": 1, "peak_memory_mb": 9000.0, "inference_time_s": 1.5}, 1.5),
        (VllmOmniRequest, {"created": 1, "output_format": "png", "size": "64x64", "metrics": {}}, None),
    ],
)
def test_peers_take_the_same_load(schema: type[BaseModel], more: dict[str, Any], drawing: float | None) -> None:
    kind = RequestKind(name="guided", width=64, height=64, steps=4, guidance_scale=2.0, images=2)
    with image_server() as (server, url):
        server.validate, server.more, server.headers = schema.model_validate, more, {}
        record = ask(url, "images", kind, {"authorization": "Bearer secret"})
        headers, body = server.received[-1]
    assert (record.outcome, record.drawing) == ("ok", drawing)
    assert headers["authorization"] == "Bearer secret"
    assert body["response_format"] == "b64_json" and body["num_inference_steps"] == 4 and body["n"] == 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"endpoint": "tasks"}, "is no zimage-serve, which --endpoint tasks needs"),
        ({"server": "zimage"}, "is no zimage-serve: it has no /v1/model_info"),
        ({"mix": Mix((KINDS["two"],))}, "which priority and deadline of two need"),
    ],
)
def test_load_that_only_zimage_serve_takes_is_refused(change: dict[str, Any], error: str) -> None:
    rungs = (Rung(users=1, seconds=1.0, warmup=0.0),)
    options = LoadOptions(**{"mix": Mix.sizes("64x64"), "rungs": rungs} | change)
    with image_server() as (server, url), pytest.raises(RuntimeError, match=error):
        run_load(url, "peer", options, (), None, lambda *_: None)
    assert json.dumps(server.received) == "[]"
