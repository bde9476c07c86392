"""Clients of other projects, unchanged, against the server. OpenAI's own client is used by the tests of its API."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.client_calls import HEIGHT, KEY, PROMPT, RED, SEED, STEPS, WIDTH
from fakes.loop import LORAS, MODEL, FakeLoop
from fakes.processes import PYTHONPATH, ROOT
from fakes.server import serving

from server.api.access import AccessPolicy

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "PYTHONPATH": PYTHONPATH,
    "PYTHONWARNINGS": "ignore",
}
PIXELS = [WIDTH, HEIGHT, SEED, STEPS, len(PROMPT)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeLoop(), policy=AccessPolicy((KEY,))) as url:
        yield url


def answers_of(client: str, url: str, folder: Path) -> dict[str, Any]:
    if find_spec(client) is None:
        pytest.skip(f"{client} is not installed; scripts/install does it")
    command = [sys.executable, "-m", "fakes.client_calls", client, url, str(folder)]
    run = subprocess.run(command, env=os.environ | OFFLINE, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_webuiapi_generates_and_reads_everything_that_it_can_list(url: str, tmp_path: Path) -> None:
    found = answers_of("webuiapi", url, tmp_path)
    assert (found["pixels"], found["images"], found["seeds"]) == (PIXELS, 2, [SEED, SEED + 1])
    assert found["info"] == found["infotext"]
    assert found["info"].startswith(f"{PROMPT}\nSteps: {STEPS}, Sampler: Euler, CFG scale: 1, Seed: {SEED}")
    assert (found["model"], found["names"]) == (MODEL, [["Euler"], ["simple"], list(LORAS)])
    assert found["drawn"] == [WIDTH, HEIGHT, SEED, 6, RED]  # 0.75 of 8 steps
    assert [pixel[:2] for pixel in found["inpainted"]] == [[SEED, 6]] * 2 + [[RED, 20]] * 2
    assert found["progress"] == 0
    assert "enable_hr" in found["error"] and "RuntimeError" in found["error"]


def test_gradio_client_draws_by_position_by_name_and_concurrently(url: str, tmp_path: Path) -> None:
    found = answers_of("gradio_client", url, tmp_path)
    assert (found["pixels"], found["default"]) == (PIXELS, [128, 96])
    assert found["concurrent"] == [0, 1, 2, 3, 4]
    assert found["error"] == "AppError: width must be a multiple of 16, got 17"


def test_xinference_client_finds_the_model_and_draws(url: str, tmp_path: Path) -> None:
    found = answers_of("xinference_client", url, tmp_path)
    assert found["pixels"] == PIXELS
    half, whole = [WIDTH, HEIGHT, SEED, 4, RED], [WIDTH, HEIGHT, SEED, 8, RED]
    assert found["drawn"] == {"image_to_image": half, "image_edit": half, "inpainting": whole}
    assert httpx.get(found["url"]).headers["content-type"] == "image/png"
    assert "must be a multiple of 16, got 17" in found["error"]


def test_langchain_s_wrapper_of_openai_gets_a_url(url: str, tmp_path: Path) -> None:
    found = answers_of("langchain_community", url, tmp_path)
    assert httpx.get(found["url"]).headers["content-type"] == "image/png"
    assert "must be a multiple of 16, got 17" in found["error"]


def test_litellm_draws_as_if_for_openai_and_for_xinference(url: str, tmp_path: Path) -> None:
    found = answers_of("litellm", url, tmp_path)
    for width, height, _, steps, red in found["edited"].values():  # litellm drops the seed
        assert [width, height, steps, red] == [WIDTH, HEIGHT, 5, RED]  # 0.6 of 8 steps, rounded up
    assert found["sizes"] == {name: [WIDTH, HEIGHT] for name in ("openai/dall-e-3", "xinference/any")}
    assert "must be a multiple of 16, got 17" in found["error"]
