"""The table of batch sizes: its best batches, its file, and `zimage-bench batching`, which writes it."""

import json
import shutil
from pathlib import Path

import pytest
from fakes.manifest import MANIFEST

from benchmarks.batching import usual_sizes
from benchmarks.cli import main
from engine.errors import ZImageError
from engine.plan.directory import read
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.size import Size


def test_best_batch_gains_on_every_smaller_one() -> None:
    assert PassTimes(64, 64, (1.0,)).best == 1
    assert PassTimes(64, 64, (1.0, 2.0, 3.0, 4.0)).best == 1
    assert PassTimes(64, 64, (1.0, 1.0, 1.0, 1.0)).best == 4
    assert PassTimes(64, 64, (1.0, 2.0, 2.0, 4.0)).best == 3
    assert PassTimes(64, 64, (1.0, 1.96, 2.94, 3.84)).best == 1  # 4 per cent are not worth the delay


def test_limit_is_that_of_the_next_larger_measured_size() -> None:
    rows = (PassTimes(512, 512, (1.0, 2.0)), PassTimes(128, 64, (1.0, 1.0)), PassTimes(256, 256, (1.0, 1.5, 1.5)))
    table = BatchTable("here", rows)
    sizes = [(64, 64), (128, 64), (128, 128), (512, 256), (528, 512)]
    assert [table.limit(Size(*size)) for size in sizes] == [2, 2, 3, 1, 1]


def test_table_is_read_as_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    table = BatchTable("here", (PassTimes(512, 512, (1.0, 2.0)), PassTimes(128, 64, (1.0, 1.0))))
    assert BatchTable.read(tmp_path) == BatchTable() and BatchTable().limit(Size(64, 64)) == 1
    (tmp_path / "batching.json").write_bytes(table.encode())
    assert BatchTable.read(tmp_path) == table
    (tmp_path / "batching.json").write_bytes(table.encode()[:40])
    with pytest.raises(ZImageError, match="zimage-bench batching"):
        BatchTable.read(tmp_path)


def test_command_writes_the_table_beside_the_plans(
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


def test_usual_sizes_double_from_the_smallest_to_the_largest() -> None:
    assert usual_sizes(MANIFEST) == [(side, side) for side in (64, 128, 256, 512)]
