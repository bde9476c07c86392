"""`zimage-bench encode`: only lossless encoders are timed, and a held GIL is noticed."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.encode import measure, photographs, require_lossless
from engine.images.encode import encode
from engine.request import ImageFormat

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-22-png-cpu.json"


def test_encoder_that_changes_the_image_is_not_timed() -> None:
    generated = {"flat": np.zeros((8, 8, 3), np.uint8)}

    def wrong(_pixels: object) -> bytes:
        return encode(np.full((8, 8, 3), 1, np.uint8))

    require_lossless({"right": encode, "JPEG": lambda pixels: encode(pixels, ImageFormat("jpeg"))}, generated)
    with pytest.raises(RuntimeError, match="wrong has changed the image flat"):
        require_lossless({"right": encode, "wrong": wrong}, generated)


@pytest.mark.timing
def test_encoder_that_holds_the_gil_is_noticed() -> None:
    def holds(_pixels: object) -> bytes:
        return bytes(sum(range(3_000_000)) % 2)  # one call into C, in which no other thread runs

    [row] = measure({"holds": holds}, {"flat": np.zeros((8, 8, 3), np.uint8)}, 1).values()
    assert row["gil_held_s"] > row["seconds"]["flat"] / 4


def test_recorded_result_has_the_fields_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["encode", "--runs", "1", "--size", "64"])
    fresh = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]["sizes"]["64x64"]
    for rows in json.loads(RESULT.read_text())["figures"]["sizes"].values():
        assert fresh.keys() <= rows.keys()
        assert rows["zimage-trt"].keys() == fresh["zimage-trt"].keys()
        assert rows["zimage-trt"]["bytes"].keys() == photographs(16).keys()
