"""Properties of all dialects: keys, rates, metrics, arbitrary bodies, and the setting that turns them off."""

import json
from typing import Any

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.pictures import as_base64, picture
from fakes.server import IMAGES, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.plan.guide import Guide
from server.api.access import AccessPolicy
from server.api.dialects.names import DIALECTS
from server.cli import server_options
from server.settings_sources import read

MESSAGES = [{"role": "user", "content": "a cat"}]
# a request for an image by each dialect
REQUESTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "automatic1111": ("/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1}),
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "steps": 1}),
    "gradio": ("/api/predict/", {"data": ["a cat", 64, 64, 1]}),
    "query": ("/v1/generate?prompt=a%20cat&steps=1", None),
    "xinference": (IMAGES, {"prompt": "a cat", "kwargs": '{"steps": 1}'}),
}
JOINS = {
    "gradio queue": ("/queue/join", {"data": ["a cat"], "session_hash": "s"}),
    "gradio call": ("/call/predict", {"data": ["a cat"]}),
}


def test_every_dialect_is_tested_here() -> None:
    assert tuple(REQUESTS) == DIALECTS


@pytest.mark.parametrize("only", DIALECTS)
def test_dialect_works_alone_and_the_others_are_off(only: str) -> None:
    with serving(FakeLoop(), dialects=(only,)) as url, httpx.Client(base_url=url) as http:
        for name, (path, body) in REQUESTS.items():
            status = http.post(path, json=body).status_code
            assert (status == 200) == (name == only), name
        assert http.post(IMAGES, json={"prompt": "a cat"}).status_code == 200
        assert http.post("/v1/generate", json={"prompt": "a cat"}).status_code == 200


@pytest.mark.parametrize(
    ("words", "expected"),
    [("none", ()), ("chat", ("chat",)), ("gradio automatic1111", ("gradio", "automatic1111")), (None, DIALECTS)],
)
def test_setting_names_the_dialects(
    monkeypatch: pytest.MonkeyPatch, words: str | None, expected: tuple[str, ...]
) -> None:
    monkeypatch.delenv("ZIMAGE_DIALECTS", raising=False)
    given = ["--dialects", words] if words else []
    options = server_options(read(["--engines", "plans", *given]), (), Guide())
    assert options.dialects == expected


@pytest.mark.parametrize("words", ["comfyui", "none chat", "Chat"])
def test_unknown_dialect_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str], words: str) -> None:
    with pytest.raises(SystemExit):
        read(["--engines", "plans", "--dialects", words])
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("zimage-serve: error: --dialects: must be none")


@pytest.mark.parametrize("name", [*REQUESTS, *JOINS])
def test_keys_and_rates_apply_to_every_dialect(name: str) -> None:
    path, body = (REQUESTS | JOINS)[name]
    policy = AccessPolicy(("first-key",), rate="1/hour")
    with serving(FakeLoop(), policy=policy) as url, httpx.Client(base_url=url) as http:
        assert http.post(path, json=body).status_code == 401
        headers = {"authorization": "Bearer first-key"}
        answers = [http.post(path, json=body, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert "rate of 1/hour" in answers[1].text
        assert int(answers[1].headers["retry-after"]) > 0


def test_dialects_are_in_the_metrics_from_the_start_and_not_in_the_document(http: httpx.Client) -> None:
    metrics = http.get("/metrics").text
    for name in ("automatic1111", "chat", "gradio"):
        assert f'zimage_jobs_accepted_total{{api="{name}"}}' in metrics
    assert not [path for path in http.get("/openapi.json").json()["paths"] if "sdapi" in path or "chat" in path]


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/sdapi/v1/txt2img", 1 << 20),
        ("/sdapi/v1/img2img", 57 << 20),  # with two images as base64
        ("/v1/chat/completions", 57 << 20),
        ("/api/predict/", 1 << 20),
        ("/queue/join", 1 << 20),
    ],
)
def test_bodies_are_bounded_and_must_be_json(http: httpx.Client, path: str, most: int) -> None:
    large = json.dumps({"prompt": "x" * most})
    headers = {"content-type": "application/json"}
    assert http.post(path, content=large, headers=headers).status_code == 413
    assert http.post(path, content=large, headers={"content-type": "text/plain"}).status_code == 415


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = """prompt seed steps width kwargs n data fn_index session_hash messages extra_body role content image styles
    override_settings alwayson_scripts event_id temperature batch_size n_iter sd_model_checkpoint"""
IMG2IMG_NAMES = "mask denoising_strength resize_mode mask_blur inpainting_fill inpaint_full_res inpainting_mask_invert"
KEYS = st.sampled_from(NAMES.split() + IMG2IMG_NAMES.split())
BODIES = st.dictionaries(KEYS, JSON_VALUES | st.dictionaries(KEYS, JSON_VALUES, max_size=3), max_size=5)
# paths that take bodies, with what makes an arbitrary body more probably valid
PATHS: dict[str, dict[str, Any]] = {
    "/sdapi/v1/txt2img": {"prompt": "a cat"},
    "/sdapi/v1/img2img": {"init_images": [as_base64(picture())]},
    "/sdapi/v1/options": {},
    "/sdapi/v1/png-info": {"image": "x"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/api/predict/": {"data": ["a cat"]},
    IMAGES: {"prompt": "a cat", "kwargs": "{}"},
}


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES | JSON_VALUES)
def test_arbitrary_body_is_never_a_server_error(http: httpx.Client, path: str, body: Any) -> None:
    for sent in (body, body | PATHS[path] if isinstance(body, dict) else body):
        response = http.post(path, content=json.dumps(sent), headers={"content-type": "application/json"})
        assert response.status_code in (200, 400), response.text
