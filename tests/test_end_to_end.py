"""The README's commands from end to end: a checkpoint becomes an image through HTTP."""

import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from engine.images.preparation import Preparation
from engine.images.source import read_init_image
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from nano.judge import judge
from nano.scenes import Background, Scene, Thing

LONG = "far too many words " * 1250  # 5,000 words
ROOT = Path(__file__).resolve().parent.parent


def test_the_openai_client_gets_the_pipelines_image(engines: Path) -> None:
    with serving(engines) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = client.images.generate(prompt="a red circle", size="96x64", extra_body={"seed": 7})
        long = client.images.generate(prompt=LONG, size="64x64")
    assert answer.data is not None and long.data is not None
    png = base64.b64decode(answer.data[0].b64_json or "")
    expected = Pipeline.load(engines).generate(ImageRequest("a red circle", 96, 64, seed=7))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), expected.pixels)
    assert answer.data[0].revised_prompt is None
    generated = long.data[0].revised_prompt or ""
    assert 500 < len(generated) < len(LONG)
    assert LONG.startswith(generated)


def test_the_openai_client_edits_an_image_as_the_pipeline_does(engines: Path) -> None:
    generator = np.random.default_rng(1)
    image = np.kron(generator.integers(0, 256, (7, 9, 3), np.uint8), np.ones((16, 16, 1), np.uint8))  # 144 x 112
    mask = np.zeros((112, 144), np.uint8)
    mask[32:80, 48:] = 255
    files = {"image": png_of(image), "mask": png_of(mask)}
    fields = {"seed": 7, "strength": 0.75, "num_inference_steps": 4}
    with serving(engines) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        edit = client.images.edit(**files, prompt="a red circle", extra_body=fields)
        cropped = client.images.edit(**files, prompt="a red circle", extra_body=fields | {"padding_mask_crop": 8})
        task = httpx.post(
            f"{url}/api/v1/generate",
            json={"prompt": "", "init_image": base64.b64encode(files["image"]).decode()} | fields,
            timeout=60,
        ).json()
    pipeline = Pipeline.load(engines)
    request = ImageRequest("a red circle", seed=7, num_inference_steps=4)
    for answer, padding in ((edit, None), (cropped, 8)):
        preparation = Preparation(pipeline.manifest.size_limits, padding_mask_crop=padding)
        init_image = read_init_image(image, mask, preparation)
        expected = pipeline.generate(request.starting_from(init_image, 0.75), init_image=init_image)
        assert answer.data is not None
        found = decoded(answer.data[0].b64_json or "")
        assert found.shape == (112, 144, 3) and np.array_equal(found, expected.pixels)
        assert not np.array_equal(found, image)
    init_image = read_init_image(image, None, Preparation(pipeline.manifest.size_limits))
    expected = pipeline.generate(
        ImageRequest("", seed=7, num_inference_steps=4).starting_from(init_image, 0.75), init_image=init_image
    )
    assert np.array_equal(decoded(task["images"][0]), expected.pixels)


def png_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@contextmanager
def serving(engines: Path) -> Iterator[str]:
    """Run zimage-serve and yield its URL."""
    command = [sys.executable, "-m", "server.cli", "--engines", str(engines), "--port", "0", "--batching", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split("ready on ")[1].split()[0]
        finally:
            server.terminate()


# scripts/demo.py with the commands in a folder
DEMO = """
import runpy, sys
_, bin, *sys.argv = sys.argv
sys.executable = f"{bin}/python"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_demo_generates_one_image(tmp_path: Path, traces: Path) -> None:
    """The build need not trace what this test run has traced."""
    (bin := tmp_path / "bin").mkdir()
    (bin / "zimage-serve").symlink_to(Path(sys.executable).with_name("zimage-serve"))
    (bin / "build-engines").write_text(f'#!/bin/sh\nexec {sys.executable} -m fakes.build_engines {traces} "$@"\n')
    (bin / "build-engines").chmod(0o755)
    demo = [sys.executable, "-c", DEMO, bin, ROOT / "scripts" / "demo.py", "--once", "--port", "0", "--out", tmp_path]
    done = subprocess.run(demo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    image = tmp_path / "demo.png"
    assert str(image) in done.stdout
    asked = Scene(
        (Thing("circle", "red", "small"), Thing("star", "blue", "large")), "left of", Background("yellow", "yellow")
    )
    with Image.open(image) as image:
        assert image.size == (256, 256)
        verdict = judge(np.asarray(image.convert("RGB")), asked)
    assert all(held == statements for held, statements in verdict.values()), verdict


@pytest.mark.slow
@pytest.mark.timing
def test_start_up_takes_a_few_times_as_long_as_the_imports_it_needs(engines: Path) -> None:
    """`zimage-bench startup` measures the seconds."""
    bench = [sys.executable, "-m", "benchmarks.cli", "startup", "--engines", str(engines), "--runs", "3"]
    done = subprocess.run(bench, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    imports = [import_seconds() for _ in range(3)]
    print(figures, imports)
    assert figures["runs"] == 3
    assert 0 < figures["ready_median_s"] < 6 * median(imports)


def import_seconds() -> float:
    """Seconds of a process that imports the libraries without which nothing is served."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import fastapi, onnxruntime, pydantic_settings, uvicorn"], check=True)
    return time.perf_counter() - started
