"""`zimage-bench batching`: the table is written where the server reads it."""

import json
import shutil
from pathlib import Path

import pytest
from fakes.manifest import MANIFEST

from benchmarks.batching import usual_sizes
from benchmarks.cli import main
from engine.plan.manifest import read
from engine.scheduler.batch_table import BatchTable
from engine.size import Size


def test_the_table_goes_beside_the_plans(
    plan_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = shutil.copytree(plan_directory, tmp_path / "plans")
    main(["batching", "--engines", str(plans), "--sizes", "64x64,512x512", "--rounds", "1"])
    table = BatchTable.read(plans)
    assert [(row.height, row.width, len(row.seconds)) for row in table.rows] == [(64, 64, 4), (512, 512, 1)]
    assert all(seconds > 0 for row in table.rows for seconds in row.seconds)
    assert table.machine
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures["64x64"]["best"] == table.limit(Size(64, 64))
    read(plans)  # the plans are still what their manifest says


def test_sizes_double_from_the_smallest_to_the_largest() -> None:
    assert usual_sizes(MANIFEST) == [(side, side) for side in (64, 128, 256, 512)]
