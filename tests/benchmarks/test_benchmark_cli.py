"""`zimage-bench`: its commands, and the line that it ends with when its arguments are wrong, before it measures."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.cli import COMMANDS, main
from benchmarks.harness.arguments import count, count_or_zero, positive, positive_or_zero


def test_every_command_has_a_module() -> None:
    assert all(find_spec(f"benchmarks.{command.replace('-', '_')}") for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        *("lora-swap --runs 0", "lora-swap --runs -1", "lora-swap --runs many"),
        *("gpu-check x --layers 0", "gpu-check x --layers -4", "gpu-check x --part nonsense"),
        *(
            "gpu-check x --minutes 0",
            "gpu-check x --minutes -1",
            "gpu-check x --minutes nan",
            "gpu-check x --minutes inf",
        ),
        *("self-test --engines x --warm-up 128", "self-test --engines x --no-self-test"),
    ],
)
def test_wrong_argument_exits_with_status_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    assert words.split()[-1] in capsys.readouterr().err


@pytest.mark.parametrize("only", ["", ",,", "machine,", "machin"])
def test_gpu_check_refuses_parts_that_it_does_not_have(tmp_path: Path, only: str) -> None:
    with pytest.raises(SystemExit, match=r"gpu-check has no part .*; its parts are machine, "):
        main(["gpu-check", str(tmp_path / "report"), "--only", only])
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("folder", "why"), [("file", "File exists"), ("file/x", "Not a directory")])
def test_folder_that_cannot_be_written_ends_with_one_line(tmp_path: Path, folder: str, why: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"^zimage-bench: .*{why}.*{folder}'$"):
        main(["gpu-check", str(tmp_path / folder), "--only", "machine"])


def test_benchmark_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    monkeypatch.delitem(sys.modules, "benchmarks.parity", raising=False)
    with pytest.raises(
        SystemExit, match=r"zimage-bench: parity needs skimage.metrics, which is not installed; .*pip install"
    ):
        main(["parity"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("denoiser --layers 2", "--layers needs --build"),
        ("denoiser --accumulate fp16", "--accumulate needs --build"),
        ("vae_decoder --build --layers 2", "--layers has no effect on the vae_decoder, only on prompt_encoder and den"),
        (
            "prompt_encoder --build --accumulate fp16",
            "--accumulate has no effect on the prompt_encoder, only on denoiser",
        ),
        ("denoiser --build --compute-capability 1.0", "no compute capability '1.0'"),
        ("denoiser --build --compute-capability 7.5", "no FP32 matrix products for compute capability 7.5"),
        ("denoiser --build --profile 100", "--profile 100: got 100"),
    ],
)
def test_full_size_refuses_options_without_effect_before_it_traces(words: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["full-size", *words.split()])


def test_vram_refuses_an_unknown_gpu_before_it_traces() -> None:
    with pytest.raises(SystemExit, match="no compute capability 'x'"):
        main(["vram", "--compute-capability", "x"])


def test_numbers_at_the_limits_are_accepted() -> None:
    assert (count("1"), count_or_zero("0"), positive("1e-9"), positive_or_zero("0")) == (1, 0, 1e-9, 0.0)
