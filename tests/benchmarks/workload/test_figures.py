"""Figures of a rung from records, objectives on them, and the file of records."""

from pathlib import Path

import pytest

from benchmarks.workload import records
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.objective import Objective, check
from benchmarks.workload.records import Outcome, Record, Throttle


def record(due: float, latency: float, outcome: Outcome = "ok", kind: str = "square", images: int = 1) -> Record:
    error = "" if outcome == "ok" else f"it {outcome}"
    return Record(kind, due, due, due + latency, outcome, error=error, images=images, first_byte=latency / 2)


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    late = Record("square", due=1.0, sent=4.0, ended=5.0, outcome="ok", images=1)
    found = RungFigures.of([late], 10)
    assert (found.latency_s.max, found.late_s.max) == (4.0, 3.0)


def test_warm_up_and_cut_off_requests_are_left_out() -> None:
    found = RungFigures.of([record(0.5, 9.0), record(2.0, 1.0), record(9.0, 3.0, "cut_off")], 10, warmup=1)
    assert (found.requests, found.cut_off, found.success_percent) == (1, 1, 100.0)
    assert (found.latency_s.p50, found.latency_s.max) == (1.0, 1.0)


def test_achieved_rate_counts_images_that_arrive_within_the_rung() -> None:
    ended = [record(0.5, 3.0), record(2.0, 1.0, images=4), record(9.0, 3.0), record(5.0, 1.0, "failed")]
    found = RungFigures.of(ended, seconds=11, warmup=1)
    assert found.achieved_per_s == (1 + 4) / 10
    assert found.offered_per_s == (4 + 1 + 1) / 10


def test_percentiles_need_requests_beyond_them() -> None:
    few, many = (RungFigures.of([record(0, 1 + i / count) for i in range(count)], 1) for count in (19, 99))
    assert few.latency_s.p95 is None and many.latency_s.p99 is None
    assert many.latency_s.p95 == pytest.approx(1 + 94 / 99)
    assert RungFigures.of([], 1).latency_s.mean is None


def test_latency_includes_requests_that_timed_out_but_not_failures() -> None:
    found = RungFigures.of([record(0, 1.0), record(0, 60.0, "timeout"), record(0, 0.01, "failed")], 10)
    assert (found.latency_s.p50, found.latency_s.max) == (30.5, 60.0)
    assert found.success_percent == pytest.approx(100 / 3)
    assert found.errors == {"it timeout": 1, "it failed": 1}


def test_refusal_that_a_client_does_not_wait_for_makes_no_server_fast() -> None:
    refusals = [
        Record("square", 1.0, 1.0, 1.01, "throttled", throttles=(Throttle(1.01, 30.0, is_honoured=False),)),
        Record("square", 1.0, 1.0, 1.01, "refused", throttles=(Throttle(1.01, None, is_honoured=False),)),
    ]
    found = RungFigures.of([*refusals, record(1.0, 5.0)], 10).latency_s
    assert found.max == pytest.approx(30.01)
    assert found.p50 == 5.0


def test_wrong_images_are_no_success() -> None:
    found = RungFigures.of([record(0, 1.0), record(0, 1.0, "wrong_image")], 10)
    assert (found.success_percent, found.wrong_images, found.images) == (50.0, 1, 1)


def test_throttles_are_counted_apart_from_outcomes() -> None:
    honoured, ignored = Throttle(0.1, 2.0, is_honoured=True), Throttle(0.2, 4.0, is_honoured=False)
    well = Record("square", 0.0, 0.0, 3.0, "ok", images=1, throttles=(honoured,))
    badly = Record("square", 0.0, 0.0, 3.0, "throttled", status=429, images=1, throttles=(ignored, ignored))
    found = RungFigures.of([well, badly], 10).throttled
    assert (found.answers, found.honoured, found.gave_up) == (3, 1, 1)
    assert found.retry_after_s.max == 4.0


def test_kinds_have_figures_of_their_own() -> None:
    found = RungFigures.of([record(0, 1.0), record(0, 5.0, kind="edit"), record(0, 1.0, "failed", kind="edit")], 10)
    assert (found.by_kind["square"].requests, found.by_kind["square"].success_percent) == (1, 100.0)
    assert (found.by_kind["edit"].requests, found.by_kind["edit"].success_percent) == (2, 50.0)
    assert found.by_kind["edit"].latency_s.max == 5.0


def test_timeline_has_a_point_per_second_also_after_the_end() -> None:
    found = RungFigures.of([record(0.2, 0.3, images=2), record(0.5, 2.0, "failed"), record(1.5, 2.0)], 3)
    assert [(each.at_s, each.images, each.errors) for each in found.timeline] == [
        (0.0, 2, 0),
        (1.0, 0, 0),
        (2.0, 0, 1),
        (3.0, 1, 0),
    ]
    assert [each.at_s for each in RungFigures.of([], 300).timeline] == [10.0 * number for number in range(30)]


def test_histogram_counts_every_success_once_in_buckets_that_grow() -> None:
    found = RungFigures.of([record(0, seconds) for seconds in (0.1, 0.11, 0.5, 10.0)], 20).histogram
    assert sum(bucket.count for bucket in found) == 4
    assert found[0].up_to_s == pytest.approx(0.1) and found[0].count == 1
    assert found[-1].up_to_s == pytest.approx(10.0)
    assert len(found) == 21


def test_warm_up_as_long_as_the_rung_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than the rung of 5 s, got 5 s"):
        RungFigures.of([], 5, warmup=5)


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("p50=1.5s", True),
        ("p50=1499ms", False),
        ("first_byte_p95=1s", True),
        ("first_byte_p95=740ms", False),
        ("success=96", True),
        ("success=96.1%", False),
        ("rate=2.4/s", True),
        ("rate=2.5", False),
    ],
)
def test_objective_is_met_or_missed(text: str, is_met: bool) -> None:
    ended = [record(0, 1.5) for _ in range(24)] + [record(0, 1, "failed")]
    assert [result.is_met for result in check(Objective.parse_all(text), RungFigures.of(ended, 10))] == [is_met]


def test_objective_on_a_figure_that_too_few_requests_leave_unknown_is_missed() -> None:
    (result,) = check(Objective.parse_all("p95=100s"), RungFigures.of([record(0, 1.0)] * 19, 10))
    assert (result.value, result.is_met) == (None, False)


def test_several_objectives_are_separated_by_commas() -> None:
    assert [(each.name, each.bound) for each in Objective.parse_all("p95=250ms, success=99.9")] == [
        ("p95", 0.25),
        ("success", 99.9),
    ]


@pytest.mark.parametrize("text", ["p95", "p90=1s", "success=5s", "p95=-1s", "p95=5s,", "rate=1%"])
def test_text_that_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"an objective is p50, .*got "):
        Objective.parse_all(text)


def test_records_survive_their_file_except_a_line_without_an_end(tmp_path: Path) -> None:
    written = [record(0, 1.0), Record("a", 0, 0, 1, "ok", throttles=(Throttle(0.5, None, is_honoured=True),))]
    with (tmp_path / "records.jsonl").open("wb") as file:
        for each in written:
            records.write(file, each)
        file.write(b'{"kind": "cut')
    assert list(records.read(tmp_path / "records.jsonl")) == written
