"""`zimage-generate` writes images, or exits with one line."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.processes import AT_TERMINAL
from PIL import Image

from engine.cli import main
from engine.errors import InvalidRequest, NonFiniteOutput, ZImageError
from engine.generator import ImageGenerator
from engine.images.generated import GeneratedImage
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import read, resolve
from engine.progress_bar import ProgressBar
from engine.request import MAX_SEED, ImageRequest
from engine.scheduler.pending_image import PendingImage
from engine.size import Size

COMMAND = Path(sys.executable).with_name("zimage-generate")  # what pip installs
PROMPT = "a red circle, 一个红色的圆"
SMALL = ("--size", "64", "--steps", "1")


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


def test_truncated_guidance_takes_fewer_forwards(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--size", "64", "--seed", "7", "--steps", "4", "--guidance-scale", "1.5")
    generate(engines, tmp_path / "a.png", *options, "--cfg-normalization", "0.5", "--cfg-truncation", "0.2")
    found = json.loads(open_png(tmp_path / "a.png").info["zimage-trt"])
    assert (found["cfg_normalization"], found["cfg_truncation"], found["forwards"]) == (0.5, 0.2, 6)
    assert "64x64, seed 7, 6 forwards" in capsys.readouterr().out


def test_negative_prompt_without_guidance_is_accepted_with_a_word(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(engines, tmp_path / "a.png", *SMALL, "--seed", "7", "--negative-prompt", "a cat")
    generate(engines, tmp_path / "b.png", *SMALL, "--seed", "7")
    assert np.array_equal(np.asarray(open_png(tmp_path / "a.png")), np.asarray(open_png(tmp_path / "b.png")))
    assert capsys.readouterr().err == "negative_prompt: no effect without a --guidance-scale above 0\n"


def test_extension_chooses_the_format(engines: Path, tmp_path: Path) -> None:
    generate(engines, tmp_path / "a.jpg", *SMALL, "--quality", "80")
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (64, 64))


def test_unknown_extension_is_refused_before_plans_are_looked_for(tmp_path: Path) -> None:
    refused(tmp_path / "no plans", tmp_path / "a.gif", message="must end in .png, .jpg, .jpeg, .webp; got .gif")


def test_several_images_get_numbers_and_seeds_that_follow(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(engines, tmp_path / "a.png", *SMALL, "-n", "3", "--seed", "7")
    said = capsys.readouterr().out
    for number in (1, 2, 3):
        assert json.loads(open_png(tmp_path / f"a-{number}.png").info["zimage-trt"])["seed"] == 6 + number
        assert f"{tmp_path}/a-{number}.png: 64x64, seed {6 + number}, 1 forwards" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.png", "a-2.png", "a-3.png"]
    assert re.search(r"load [\d.]+ s, 3 images \d+ ms", said)


LINES = """# two lines, and one with its own fields
a red circle

{"prompt": "a blue star", "size": "80x64", "seed": 5, "steps": 2.0, "guidance_scale": 1.5, "negative_prompt": "red", \
"cfg_normalization": true, "cfg_truncation": 0.25}
{"prompt": "a cat", "width": 80, "height": 96, "seed": null, "output": "own.webp"}
"""


def from_file(engines: Path, folder: Path, text: str, *arguments: str) -> None:
    (folder / "prompts.txt").write_text(text, encoding="utf-8")
    files = ("--prompts", str(folder / "prompts.txt"), "--output", str(folder / "a.png"))
    main([*files, "--engines", str(engines), "--threads", "1", *arguments])


def test_file_of_prompts_gives_an_image_per_line(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from_file(engines, tmp_path, LINES, *SMALL, "--seed", "20")
    assert "own.webp: 80x96, seed 22, 1 forwards\n" in capsys.readouterr().out
    facts = [json.loads(open_png(tmp_path / f"a-{number}.png").info["zimage-trt"]) for number in (1, 2)]
    names = ("prompt", "width", "height", "seed", "num_inference_steps", "guidance_scale", "negative_prompt")
    assert [facts[0][name] for name in names] == ["a red circle", 64, 64, 20, 1, 0.0, ""]
    assert [facts[1][name] for name in names] == ["a blue star", 80, 64, 5, 2, 1.5, "red"]
    assert [facts[1][name] for name in ("cfg_normalization", "cfg_truncation", "forwards")] == [1.0, 0.25, 4]
    with Image.open(tmp_path / "own.webp") as image:
        assert (image.format, image.size) == ("WEBP", (80, 96))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.png", "a-2.png", "own.webp", "prompts.txt"]


WRONG_LINES = {
    "unknown field": ('{"prompt": "a cat", "colour": 1}', "Object contains unknown field `colour`"),
    "no prompt": ('{"size": "64x64"}', "Object missing required field `prompt`"),
    "text as a number": ('{"prompt": "a cat", "seed": "7"}', "Expected `int | null`, got `str` - at `$.seed`"),
    "fraction": ('{"prompt": "a cat", "steps": 1.5}', "Expected `int | null`, got `float` - at `$.steps`"),
    "no JSON": ('{"prompt": ', "Input data was truncated"),
    "size": ('{"prompt": "a cat", "size": "large"}', "size must be WIDTHxHEIGHT in pixels"),
    "two sizes": ('{"prompt": "a cat", "size": "64", "width": 64}', "give either size or width and height"),
    "plans": ('{"prompt": "a cat", "width": 65, "height": 64}', "width must be a multiple of 16, got 65"),
    "steps": ('{"prompt": "a cat", "steps": 0}', "num_inference_steps must be between 1 and 100, got 0"),
    "format": ('{"prompt": "a cat", "output": "a.gif"}', "a.gif must end in .png"),
    "folder": ('{"prompt": "a cat", "output": "nowhere/a.png"}', "No such file or directory"),
}


@pytest.mark.parametrize(("line", "message"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_wrong_line_is_named_before_anything_is_drawn(engines: Path, tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(SystemExit) as end:
        from_file(engines, tmp_path, f"a red circle\n# a comment\n{line}\n", *SMALL)
    assert str(end.value.code).startswith(f"zimage-generate: {tmp_path}/prompts.txt, line 3: ")
    assert message in str(end.value.code) and "\n" not in str(end.value.code)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_output_of_two_lines_is_refused(engines: Path, tmp_path: Path) -> None:
    same = json.dumps({"prompt": "a cat", "output": str(tmp_path / "b.png")})
    with pytest.raises(SystemExit) as end:
        from_file(engines, tmp_path, f"{same}\n{same}\n")
    assert re.search(r"line 2: .*b\.png is already the output of .*line 1$", str(end.value.code))


@pytest.mark.parametrize("text", [b"", b"# nothing\n\n", b"\xff\xfea"])
def test_file_without_prompts_is_refused(engines: Path, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "prompts.txt").write_bytes(text)
    with pytest.raises(SystemExit, match=r"holds no prompts|is not UTF-8 text"):
        main(["--prompts", str(tmp_path / "prompts.txt"), "--engines", str(engines)])


def test_prompts_come_from_standard_input(engines: Path, tmp_path: Path) -> None:
    arguments = ["--prompts", "-", "--engines", engines, "-o", tmp_path / "a.png", *SMALL]
    done = subprocess.run(
        [COMMAND, *arguments], input="a red circle\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert open_png(tmp_path / "a.png").size == (64, 64)


def test_failed_image_of_several_is_named_and_the_others_are_written(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish = ImageGenerator._finish

    def fail_first(self: ImageGenerator, pending: PendingImage) -> GeneratedImage | ZImageError:
        if pending.sample.request.prompt == "a cat":
            return NonFiniteOutput("the latents hold NaN or Inf")
        return finish(self, pending)

    monkeypatch.setattr(ImageGenerator, "_finish", fail_first)
    with pytest.raises(SystemExit, match="zimage-generate: 1 of 2 images failed"):
        from_file(engines, tmp_path, "a cat\na red circle\n", *SMALL)
    assert f"a-1.png: {tmp_path}/prompts.txt, line 1: the latents hold NaN or Inf\n" in capsys.readouterr().err
    assert open_png(tmp_path / "a-2.png").size == (64, 64) and not (tmp_path / "a-1.png").exists()


def test_interruption_keeps_finished_images_and_prints_one_line(engines: Path, tmp_path: Path) -> None:
    arguments = ["a red circle", "--engines", engines, "-o", tmp_path / "a.png", "--size", "256", "-n", "50"]
    command = [*AT_TERMINAL, COMMAND, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "a-1.png" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    written = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert said == f"zimage-generate: interrupted; {len(written)} of 50 images were written\n"
    assert not list(tmp_path.glob(".*")) and written


def test_terminal_gets_a_progress_bar_and_other_streams_none() -> None:
    terminal, file = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    for stream in (terminal, file):
        bar = ProgressBar(2, 16, stream=stream)
        for _ in range(4):
            bar.step()
        bar.finish_image()
        bar.step()
        bar.clear()
    assert "[######..................] image 1 of 2, step 4 of 16, 0 s" in terminal.getvalue()
    assert "image 2 of 2, step 5 of 16" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K") and "\n" not in terminal.getvalue()
    assert file.getvalue() == ""


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
    "negative seed": (["--seed", "-2"], f"seed must be between 0 and {MAX_SEED}, or -1 for a random one, got -2"),
    "large seed": (["--seed", f"{2**64}"], f"or -1 for a random one, got {2**64}"),
    "two prompts": (["--prompts", "prompts.txt"], "give either a prompt or --prompts FILE"),
    "quality of a PNG": (["--quality", "80"], "png is lossless"),
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


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "two", ""])
def test_wrong_number_of_images_is_refused(engines: Path, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([PROMPT, "--engines", str(engines), "-n", count])
    assert f"must be a whole number of at least 1, got {count!r}" in capsys.readouterr().err


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


# an image to start from


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with in.png, 83 x 70 pixels, and mask.png, whose left half is white."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 83, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "in.png")
    Image.fromarray(np.where(np.arange(83) < 41, 255, 0).astype(np.uint8)[None].repeat(70, 0)).save(folder / "mask.png")
    return folder


def test_image_starts_from_another_one_in_its_size(
    engines: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--image", str(images / "in.png"), "--seed", "7", "--steps", "4", "-n", "2")
    generate(engines, tmp_path / "a.png", *arguments, "--strength", "0.6")
    assert "a-1.png: 80x64, seed 7, 3 forwards" in capsys.readouterr().out
    generate(engines, tmp_path / "b.png", *arguments, "--mask", str(images / "mask.png"))
    assert "b-1.png: 80x64, seed 7, 4 forwards" in capsys.readouterr().out
    written = [open_png(tmp_path / name) for name in ("a-1.png", "b-1.png")]
    assert [json.loads(image.info["zimage-trt"])["strength"] for image in written] == [0.6, 1.0]
    with ImageGenerator(engines, RuntimeOptions(threads=1, slots=4)) as generator:
        expected = generator.generate(PROMPT, image=images / "in.png", mask=images / "mask.png", seed=7, steps=4)
    assert np.abs(np.asarray(written[1]).astype(int) - expected.pixels).max() <= 1


def test_crop_to_the_mask_has_the_images_size(
    engines: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--image", str(images / "in.png"), "--mask", str(images / "mask.png"), "--padding-mask-crop", "8")
    generate(engines, tmp_path / "a.png", *SMALL, *paths, "--mask-blur", "2")
    assert "a.png: 83x70" in capsys.readouterr().out
    assert open_png(tmp_path / "a.png").size == (83, 70)


def test_lines_of_other_sizes_share_the_image(
    engines: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text('a red circle\n{"prompt": "", "size": "64x96"}\n')
    command = ["--prompts", str(lines), "--image", str(images / "in.png"), "--engines", str(engines), "--threads", "1"]
    main([*command, "--steps", "1", "--resize-mode", "stretch", "--output", str(tmp_path / "a.png")])
    assert re.findall(r"a-\d\.png: (\w+)", capsys.readouterr().out) == ["80x64", "64x96"]


def test_notes_about_the_image_are_said_once(engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    generate(engines, tmp_path / "a.png", *SMALL, "-n", "2", "--image", str(tmp_path / "a.gif"))
    assert capsys.readouterr().err.count("only its first frame is used") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "mask.png"], "--mask needs --image"),
        (["--strength", "0.5"], "--strength needs --image"),
        (["--image", "in.png", "--padding-mask-crop", "3"], "--padding-mask-crop needs --mask"),
        (["--image", "in.png", "--mask", "mask.png", "--mask-blur", "3"], "--mask-blur needs --padding-mask-crop"),
        (["--image", "none.png"], r"cannot read the image .*none\.png: No such file or directory"),
        (["--image", "in.png", "--mask", "text.png"], r"text\.png: mask must be a PNG, JPEG, WebP, GIF or BMP file"),
        (["--image", "in.png", "--strength", "0"], r"strength must be above 0 \(0\.01 runs one of 8 steps\), got 0"),
        (["--image", "in.png", "--size", "4096x64"], "size must be within"),
    ],
)
def test_wrong_image_options_are_one_line(
    engines: Path,
    images: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    (images / "text.png").write_text("no image")
    named = [str(images / word) if word.endswith(".png") else word for word in arguments]
    with pytest.raises(SystemExit, match=message) as stopped:
        generate(engines, tmp_path / "a.png", *named)
    assert str(stopped.value).startswith("zimage-generate: ") and "\n" not in str(stopped.value)
    assert not (tmp_path / "a.png").exists()
