"""The table of batch sizes: its best batches, its files, and `zimage-bench batching`, which writes one."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fakes.manifest import BANNER, MANIFEST, USUAL

from benchmarks.cli import main
from engine import ImageGenerator
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import read
from engine.scheduler.batch_measurement import usual_sizes
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.scheduler.table_files import TableFile, TableKey
from engine.size import Size

KEY = TableKey("NVIDIA H200 (MIG 1g.18gb)", "0123abcd", "tensorrt", 0, ("large", "usual"))
TABLE = BatchTable("here", (PassTimes(512, 512, (1.0, 2.0)), PassTimes(128, 64, (1.0, 1.0))), 1.75e9)


def test_best_batch_gains_on_every_smaller_one() -> None:
    assert PassTimes(64, 64, (1.0,)).best == 1
    assert PassTimes(64, 64, (1.0, 2.0, 3.0, 4.0)).best == 1
    assert PassTimes(64, 64, (1.0, 1.0, 1.0, 1.0)).best == 4
    assert PassTimes(64, 64, (1.0, 2.0, 2.0, 4.0)).best == 3
    assert PassTimes(64, 64, (1.0, 1.96, 2.94, 3.84)).best == 1  # 4 per cent are not worth the delay


def test_speedup_is_that_of_the_best_batch() -> None:
    assert [PassTimes(64, 64, seconds).speedup for seconds in [(1.0, 1.0, 4.0), (1.0, 2.0)]] == [2.0, 1.0]


def test_limit_is_that_of_the_next_larger_measured_size() -> None:
    rows = (PassTimes(512, 512, (1.0, 2.0)), PassTimes(128, 64, (1.0, 1.0)), PassTimes(256, 256, (1.0, 1.5, 1.5)))
    table = BatchTable("here", rows)
    sizes = [(64, 64), (128, 64), (128, 128), (512, 256), (528, 512)]
    assert [table.limit(Size(*size)) for size in sizes] == [2, 2, 3, 1, 1]
    assert BatchTable().limit(Size(64, 64)) == 1
    assert (table.largest_batch, BatchTable().largest_batch) == (3, 1)


def test_table_is_read_as_written_beside_the_plans(tmp_path: Path) -> None:
    file = TableFile(tmp_path, KEY)
    assert file.read() is None
    file.write(TABLE)
    assert TableFile(tmp_path, KEY).read() == TABLE
    assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["batching"]
    assert file.path.name.startswith("nvidia-h200-mig-1g-18gb-")


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "NVIDIA H200"},
        {"plan_id": "0123abce"},
        {"flavor": "rtx"},
        {"threads": 2},
        {"profiles": ("usual",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_table_of_another_device_thread_count_or_plan_is_not_used(
    tmp_path: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    file, other = TableFile(tmp_path, KEY), TableFile(tmp_path, replace(KEY, **change))  # type: ignore[arg-type]
    file.write(TABLE)
    assert other.read() is None and not caplog.records
    shutil.copy(file.path, other.path)  # under the name of another
    assert other.read() is None
    assert "is to be measured again" in caplog.text
    assert file.read() == TABLE


DAMAGE = {
    "cut off": lambda content: content[:40],
    "not text": lambda _: b"\xff\xfe",
    "a pass of no time": lambda content: content.replace(b"2.0", b"0.0"),
    "a size without times": lambda content: msgspec.json.encode(
        {**msgspec.json.decode(content), "table": {"rows": [{"width": 64, "height": 64, "seconds": []}]}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_table_counts_as_none_and_can_be_written_again(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    file = TableFile(tmp_path, KEY)
    file.write(TABLE)
    file.path.write_bytes(damage(file.path.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert file.read() is None
    assert str(file.path) in caplog.text
    file.write(TABLE)
    assert file.read() == TABLE


def test_command_writes_the_table_that_the_generator_reads(
    plan_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = shutil.copytree(plan_directory, tmp_path / "plans", ignore=shutil.ignore_patterns("batching"))
    sizes = ["--threads", "1", "--sizes", "512x512,64x64", "--rounds", "1"]
    main(["batching", "--engines", str(plans), *sizes])
    options = RuntimeOptions(threads=1)
    with Pipeline.load(plans, options) as pipeline:
        file = TableFile.of(plans, pipeline)
        assert TableFile.of(plans, pipeline).key.threads == 1
    table = file.read()
    assert table is not None
    assert [(row.height, row.width, len(row.seconds)) for row in table.rows] == [(64, 64, 4), (512, 512, 1)]
    assert all(seconds > 0 for row in table.rows for seconds in row.seconds)
    assert table.machine == f"{file.key.machine}, 1 threads" and table.measured > 1.7e9
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures["64x64"]["best"] == table.limit(Size(64, 64))
    read(plans)  # the plans are still what their manifest says
    tables = []
    for chosen in (options, replace(options, batching="off"), replace(options, threads=2)):
        with ImageGenerator(plans, chosen) as generator:
            tables.append(generator._loop._scheduler._table)
    assert tables == [table, BatchTable(), BatchTable()]


def test_command_that_cannot_write_fails_before_it_measures(plan_directory: Path, tmp_path: Path) -> None:
    plans = shutil.copytree(plan_directory, tmp_path / "plans", ignore=shutil.ignore_patterns("batching"))
    (plans / "batching").write_text("in the way")
    with pytest.raises(SystemExit) as ended:
        main(["batching", "--engines", str(plans), "--rounds", "1000000"])
    assert ended.value.code not in (0, None)


def test_usual_sizes_double_from_the_smallest_to_the_largest() -> None:
    assert usual_sizes(MANIFEST) == [(side, side) for side in (64, 128, 256, 512)]


def test_usual_sizes_of_a_profile_without_squares_are_its_smallest_and_its_largest() -> None:
    sizes = usual_sizes(replace(MANIFEST, profiles=(USUAL, BANNER)))
    assert sizes == [(64, 64), (128, 128), (768, 64), (256, 256), (1024, 128)]
    assert all(replace(MANIFEST, profiles=(USUAL, BANNER)).profile_for(size) for size in sizes)
