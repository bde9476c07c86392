"""`zimage-bench peers --edits`: images that start from others, beside those of diffusers."""

import json
import logging
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.harness.edits import MASKS, STRENGTHS, cases


def test_cases_cover_masks_strengths_guidance_and_sizes() -> None:
    found = list(islice(cases(), 100))
    kinds = Counter(case.kind for case in found)
    assert kinds.keys() == {"img2img", *MASKS} and min(kinds.values()) >= 5
    assert {case.strength for case in found} == set(STRENGTHS)
    assert 20 < sum(bool(case.request.guidance_scale) for case in found) < 50
    assert 20 < sum(case.image.width % 16 > 0 or case.image.height % 16 > 0 for case in found) < 80
    assert all((case.mask is None) == (case.kind == "img2img") for case in found)


def test_edits_prints_worst_and_median_of_each_kind(
    checkpoint: Path, engines: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "disable", lambda _: None)  # it would silence the tests that follow
    main(["peers", "--model", str(checkpoint), "--engines", str(engines), "--edits", "1"])
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])["figures"]["edits"]
    assert (figures["all"]["images"], figures["img2img"]["images"]) == (1, 1)
    assert figures["all"]["median_db"] >= figures["all"]["worst_db"] > 60
    assert figures["all"]["forwards"] == figures["all"]["diffusers_forwards"] > 0
    assert any(line.startswith("img2img: images 1, worst_db ") for line in lines)
