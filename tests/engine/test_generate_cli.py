"""`zimage-generate` writes one PNG, or exits with one line."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.cli import main
from engine.errors import InvalidRequest
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import read, resolve
from engine.request import ImageRequest
from engine.size import Size

COMMAND = Path(sys.executable).with_name("zimage-generate")  # what pip installs
PROMPT = "a red circle, 一个红色的圆"


def generate(engines: Path, output: Path, *arguments: str, prompt: str = PROMPT) -> None:
    main([prompt, "--engines", str(engines), "--output", str(output), "--threads", "1", *arguments])


def open_png(path: Path) -> Image.Image:
    image = Image.open(path)
    assert image.format == "PNG"
    image.load()
    return image


def test_png_holds_the_pipelines_image_and_its_metadata(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(engines, tmp_path / "a.png", "--size", "96x64", "--seed", "7", "--steps", "2")
    image = open_png(tmp_path / "a.png")
    assert (image.size, image.mode) == ((96, 64), "RGB")
    assert image.info.keys() == {"parameters", "zimage-trt"}
    assert image.info["parameters"].startswith(f"{PROMPT}\nSteps: 2, ")
    found = json.loads(image.info["zimage-trt"])
    assert (found["prompt"], found["seed"], found["num_inference_steps"]) == (PROMPT, 7, 2)
    assert (found["width"], found["height"]) == image.size
    manifest = read(resolve(engines), verify=False)
    assert (found["model"], found["plan_id"]) == (manifest.model.name, manifest.plan_id)
    expected = Pipeline.load(engines, RuntimeOptions(threads=1)).generate(ImageRequest(PROMPT, 96, 64, 7, 2)).pixels
    assert np.array_equal(np.asarray(image), expected)
    captured = capsys.readouterr()
    assert f"{tmp_path / 'a.png'}: 96x64, seed 7, 2 forwards" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("is_closed", [False, True])
def test_image_is_kept_whatever_the_terminal_is(engines: Path, tmp_path: Path, is_closed: bool) -> None:
    output, (reading, writing) = tmp_path / "图.png", os.pipe()
    if is_closed:
        os.close(reading)
    command = [sys.executable, "-u", "-m", "engine.cli", PROMPT, "--size", "64x64", "--steps", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    with os.fdopen(writing, "wb") as pipe:
        command += ["--engines", str(engines), "--threads", "1", "--output", str(output)]
        done = subprocess.run(command, env=environment, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert open_png(output).size == (64, 64)
    if not is_closed:
        with os.fdopen(reading, "rb") as shown:
            assert b"/\\u56fe.png: 64x64, seed " in shown.read()
        assert (done.returncode, done.stderr) == (0, b"")


def test_defaults_give_default_size_and_printed_random_seed(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(engines, tmp_path / "a.png")
    image = open_png(tmp_path / "a.png")
    assert image.size == (256, 256)
    assert f"256x256, seed {json.loads(image.info['zimage-trt'])['seed']}, 8 forwards" in capsys.readouterr().out


def test_guided_image_prints_two_forwards_a_step(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(engines, tmp_path / "a.png", "--size", "64", "--seed", "7", "--steps", "2", "--guidance-scale", "1.5")
    assert json.loads(open_png(tmp_path / "a.png").info["zimage-trt"])["forwards"] == 4
    assert "64x64, seed 7, 4 forwards" in capsys.readouterr().out


def test_long_prompt_prints_the_ignored_part(engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a red circle " * 500 + "and the very end"
    generate(engines, tmp_path / "a.png", "--size", "64", "--steps", "1", prompt=prompt)
    assert json.loads(open_png(tmp_path / "a.png").info["zimage-trt"])["prompt"] == prompt
    captured = capsys.readouterr()
    assert captured.err.startswith("the prompt is longer than 512 tokens; ignored: ")
    assert "red circle" in captured.err
    assert captured.err.count("\n") == 1


REFUSED = {
    "not a multiple": (["--size", "513x512"], "width must be a multiple of 16, got 513"),
    "too large": (["--size", "64x4096"], "height must be between 64 and 512 (the plans), got 4096"),
    "half a size": (["--size", "10x"], "size must be WIDTHxHEIGHT in pixels, such as 1024x768, got '10x'"),
    "no size": (["--size", ""], "size must be WIDTHxHEIGHT in pixels, such as 1024x768, got ''"),
    "no steps": (["--steps", "0"], "num_inference_steps must be between 1 and 100, got 0"),
    "too many steps": (["--steps", "101"], "num_inference_steps must be between 1 and 100, got 101"),
    "unused prompt": (["--negative-prompt", "a cat"], "--negative-prompt needs a --guidance-scale above 0"),
    "negative seed": (["--seed", "-1"], "seed must be between 0 and 4294967295, got -1"),
    "large seed": (["--seed", "4294967296"], "seed must be between 0 and 4294967295, got 4294967296"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_invalid_request_exits_with_one_line(engines: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    refused(engines, tmp_path / "a.png", *arguments, message=message)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt_is_refused(engines: Path, tmp_path: Path, prompt: str) -> None:
    refused(engines, tmp_path / "a.png", prompt=prompt, message="prompt must not be empty")


def test_missing_plan_directory_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path / "a.png", message=f"no plan directory at {tmp_path / 'nowhere'}; build")


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("nowhere/a.png", "No such file or directory"),
        (".", "it is not a regular file"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_unwritable_output_is_refused_before_anything_is_generated(tmp_path: Path, output: str, why: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "no plans", tmp_path / output, message=f"cannot write {tmp_path / output}: {why}")


@pytest.mark.parametrize("threads", ["-1", "99999"])
def test_threads_out_of_range_are_refused(engines: Path, threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([PROMPT, "--engines", str(engines), "--threads", threads])
    assert f"must be between 0 and 256, got {threads}" in capsys.readouterr().err


def test_pipe_as_output_is_refused_and_kept(engines: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(engines, tmp_path / "pipe", message="it is not a regular file")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_symlink_as_output_stays_and_its_target_is_written(engines: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("target.png")
    generate(engines, tmp_path / "link.png", "--size", "64", "--steps", "1")
    assert (tmp_path / "link.png").is_symlink()
    assert open_png(tmp_path / "target.png").size == (64, 64)


def test_failed_image_leaves_the_old_file(engines: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    refused(engines, tmp_path / "a.png", "--size", "64", "--steps", "0", message="num_inference_steps")
    assert (tmp_path / "a.png").read_bytes() == b"old"


def refused(engines: Path, output: Path, *arguments: str, message: str, prompt: str = PROMPT) -> None:
    """SystemExit with a text: Python writes it to stderr and exits with 1."""
    before = set(output.parent.glob("*"))
    with pytest.raises(SystemExit) as end:
        generate(engines, output, *arguments, prompt=prompt)
    assert isinstance(end.value.code, str)
    assert end.value.code.startswith("zimage-generate: ")
    assert message in end.value.code
    assert "\n" not in end.value.code
    assert set(output.parent.glob("*")) == before


@pytest.mark.parametrize("arguments", [["--seed", "x"], ["--steps", "2.5"], ["--colour", "red"]])
def test_unparsable_arguments_print_the_usage(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        generate(engines, tmp_path / "a.png", *arguments)
    assert end.value.code == 2
    assert "usage: zimage-generate" in capsys.readouterr().err


def test_installed_command_writes_an_image(engines: Path, tmp_path: Path) -> None:
    done = run("a red circle", "--engines", engines, "--output", tmp_path / "a.png", "--size", "64x80", "--steps", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert open_png(tmp_path / "a.png").size == (64, 80)


def test_installed_command_refuses_without_a_traceback(engines: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    not_utf8 = b"a red \xff circle"
    done = run(not_utf8, "--engines", engines, "--output", output, "--size", "64")
    assert done.returncode == 1
    assert done.stderr == "zimage-generate: prompt is not valid Unicode text: surrogates not allowed\n"
    assert (done.stdout, output.exists()) == ("", False)


def run(*arguments: str | bytes | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_size_parses_as_width_by_height() -> None:
    assert Size.parse("1024x768") == Size(width=1024, height=768)
    assert Size.parse("64X80") == (64, 80)
    assert Size.parse("512") == (512, 512)


@pytest.mark.parametrize("text", ["", "x", "x64", "64x", "1x2x3", "-64x64", "64 x 64", "6.4x64", "²x²", "0x40px"])
def test_invalid_size_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="WIDTHxHEIGHT in pixels") as refusal:
        Size.parse(text)
    assert refusal.value.param == "size"
