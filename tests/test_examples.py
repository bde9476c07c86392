"""The programs in examples/, run as their readers run them, against plans of z-image-nano."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.pipeline import Pipeline
from engine.request import ImageRequest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RED_CIRCLE = ImageRequest("a red circle on a blue background", width=256, height=256, seed=7)
STAR = ImageRequest("黄色背景,左上角有一个蓝色星星", width=256, height=256, seed=7)


@pytest.fixture(scope="module")
def pipeline(engines: Path) -> Iterator[Pipeline]:
    with Pipeline.load(engines) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def url(engines: Path) -> Iterator[str]:
    """One server for all examples."""
    command = [sys.executable, "-m", "server.cli", "--engines", str(engines), "--port", "0", "--batching", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split("ready on ")[1].split()[0]
        finally:
            server.terminate()


def run(name: str, *arguments: object) -> str:
    """The output of an example, which must succeed."""
    command = [sys.executable] if name.endswith(".py") else ["bash"]
    done = subprocess.run(
        [*command, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_inpaint_keeps_the_half_outside_the_mask(engines: Path, tmp_path: Path) -> None:
    run("inpaint.py", engines, tmp_path)
    original, inpainted, varied = (
        pixels(tmp_path / f"{name}.png").astype(int) for name in ("original", "inpainted", "varied")
    )
    assert np.abs(inpainted - original)[:, 136:].mean() < 6
    assert np.abs(inpainted - original)[:, :128].mean() > 12
    assert not np.array_equal(varied, original)


def test_generate_writes_the_pipelines_image(engines: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    said = run("generate.py", engines, tmp_path / "out.png", RED_CIRCLE.prompt)
    assert np.array_equal(pixels(tmp_path / "out.png"), pipeline.generate(RED_CIRCLE).pixels)
    assert "step 8 of 8" in said


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_downloads_the_pipelines_image(url: str, pipeline: Pipeline, tmp_path: Path) -> None:
    said = run("curl.sh", url, tmp_path / "out.png")
    assert np.array_equal(pixels(tmp_path / "out.png"), pipeline.generate(RED_CIRCLE).pixels)
    assert "event: progress" in said and "event: end" in said


def test_openai_client_saves_an_image_and_two_previews(url: str, pipeline: Pipeline, tmp_path: Path) -> None:
    run("openai_client.py", url, tmp_path)
    expected = pipeline.generate(STAR).pixels
    assert np.array_equal(pixels(tmp_path / "image.png"), expected)
    assert np.array_equal(pixels(tmp_path / "streamed.png"), expected)
    assert sorted(path.name for path in tmp_path.glob("preview-*")) == ["preview-0.png", "preview-1.png"]


def test_prompts_writes_an_image_for_every_line(url: str, tmp_path: Path) -> None:
    lines = (EXAMPLES / "prompts.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    said = run("prompts.py", url, EXAMPLES / "prompts.txt", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i:03d}.png" for i in range(1, len(wanted) + 1)]
    assert all(line in said for line in wanted)


def test_lora_changes_the_image_and_nothing_else(
    refittable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(refittable, tmp_path / "refittable", symlinks=True)  # lora.sh finds the plans
    monkeypatch.setenv("BIN", str(Path(sys.executable).parent))
    said = run("lora.sh", tmp_path)
    plain, outlines = pixels(tmp_path / "plain.png"), pixels(tmp_path / "outlines.png")
    assert plain.shape == outlines.shape and not np.array_equal(plain, outlines)
    assert (tmp_path / "loras" / "outlines.lora").is_file()
    assert "built from the same inputs" in " ".join(said.split())  # the terminal wraps
    assert "zimage-serve --engines" in said


def test_every_example_is_run_and_listed() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'run("{name}"' in source for name in files), files
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({path.name})" in listed for path in EXAMPLES.iterdir() if path.name != "README.md")
