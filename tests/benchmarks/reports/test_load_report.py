"""Tables, CSV, findings and the page of a load test, from reports written by hand."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from fakes.load_reports import NONE, collapse, ladder, report, rung, soak, spread

from benchmarks.reports.comparison import read_report
from benchmarks.reports.load_findings import findings
from benchmarks.reports.load_report import load_page
from benchmarks.reports.load_table import load_csv, load_table

HOSTILE = "<script>alert(1)</script>"
EMPTY = rung(
    5,
    requests=0,
    images=0,
    success_percent=None,
    achieved_per_s=0.0,
    latency_s=NONE,
    first_byte_s=NONE,
    queue_s=NONE,
    drawing_s=NONE,
    by_kind={},
    timeline=[],
    histogram=[],
    server=None,
)


def said(*rungs: dict[str, object], **changes: object) -> str:
    return "\n".join(findings(report(*rungs, **changes)))


def objective(text: str, number: int, value: float | None, *, is_met: bool) -> dict[str, object]:
    return {"text": text, "rung": number, "value": value, "is_met": is_met}


def test_csv_has_a_row_per_rung_with_all_digits() -> None:
    found = list(csv.DictReader(io.StringIO(load_csv(ladder(name='a "server", quoted\nin two lines')))))
    assert [row["users"] for row in found] == ["1", "5", "10", "20", "30", "50"]
    assert float(found[5]["latency_s_p95"]) == rung(50)["latency_s"]["p95"]
    assert float(found[3]["rss_mb_max"]) == 440.0
    assert found[0]["target"] == 'a "server", quoted\nin two lines'
    assert found[0]["rate"] == found[0]["first_preview_s_p50"] == ""
    late = rung(50)["late_s"]
    assert (float(found[5]["late_s_p50"]), float(found[5]["late_s_p95"])) == (late["p50"], late["p95"])


def test_csv_of_rungs_with_and_without_gpus_has_the_same_columns() -> None:
    gpu = {"name": "NVIDIA L4", "utilisation_percent": 88.0, "memory_mb": 12000.0, "power_w": None}
    server = rung()["server"] | {"gpus": [gpu, gpu]}
    rows = list(csv.DictReader(io.StringIO(load_csv(report(EMPTY, rung(10, server=server))))))
    assert [row["gpu1_utilisation_percent"] for row in rows] == ["", "88.0"]
    assert rows[1]["gpu0_power_w"] == ""


def test_table_has_aligned_rows_and_no_empty_columns() -> None:
    header, *rows = load_table(ladder()).split("\n\n")[0].splitlines()
    assert [row.split("  ")[0] for row in rows] == ["1 user", "5 users", "10 users", "20 users", "30 users", "50 users"]
    assert {len(row) for row in rows} == {len(header)}
    assert "preview" not in header
    assert "GPU" not in header


def test_table_shows_objectives_by_load_and_which_are_missed() -> None:
    results = [objective("p95=5s", 0, 0.1, is_met=True), objective("p95=5s", 5, 6.6, is_met=False)]
    text = load_table(ladder(objectives=[*results, objective("success=99.9", 5, None, is_met=False)]))
    assert re.search(r"^p95=5s +100 ms +6.6 s MISSED$", text, re.MULTILINE)
    assert re.search(r"^success=99.9 +– +– MISSED$", text, re.MULTILINE)


def test_error_of_a_server_cannot_move_the_cursor_or_break_the_table() -> None:
    text = load_table(report(rung(3, errors={"bad\x1b[2J\nnews\r": 2}, success_percent=98.0)))
    assert "3 users: 2 x bad [2J news" in text
    assert "\x1b" not in text


def test_saturation_is_found_where_throughput_stops_growing() -> None:
    text = "\n".join(findings(ladder()))
    assert "Saturated at 20 users: about 12 images/s." in text
    assert "p50 from 1.17 s to 3.67 s and p95 from 2.1 s to 6.6 s" in text
    assert "waits 3.6 s in the queue and is drawn in 70 ms" in text
    assert "The devices limit: they spend 96.0 %" in text


def test_growing_throughput_is_not_called_saturated() -> None:
    assert "Not saturated: throughput still grows at 5 users" in said(rung(1), rung(5))


def test_falling_throughput_is_called_a_collapse() -> None:
    text = "\n".join(findings(collapse()))
    assert "Throughput collapses: 5.9 images/s at 1 user, 1 at 50 users." in text
    assert "Requests begin to fail at 20 users (90.0 % succeed); the worst rung is 50 users with 60.0 %." in text
    assert "no answer within 60 s (80 times)" in text


def test_ladder_that_goes_down_is_no_collapse() -> None:
    assert "Saturated at 20 users" in said(*(rung(users) for users in (50, 30, 20, 10, 5, 1)))


def test_rungs_of_equal_load_tell_how_latency_and_memory_change() -> None:
    text = "\n".join(findings(soak(0.4, 0.9, 0.5)))
    assert "p95 grows by 25.0 %, from 400 ms in the first rung to 500 ms in the last." in text
    assert "The server's memory grows by 150 MB, from 400 MB to 550 MB." in text
    assert "aturated" not in text and "At 10 users (3) the median request waits" in text
    assert "p95 falls by 50.0 %" in "\n".join(findings(soak(0.4, 0.2)))
    assert "p95" not in "\n".join(findings(soak(0.4)))
    rates = [rung(None, 4.0, server=None), rung(None, 4.0, server=None, latency_s=NONE)]
    assert "The server keeps up with every rate" in said(rates[0], rates[0]) and "grows" not in said(*rates)


def test_rungs_of_equal_load_have_names_of_their_own() -> None:
    found = soak(0.4, 0.9, 0.5)
    names = ["10 users (1)", "10 users (2)", "10 users (3)"]
    lines = load_table(
        found | {"figures": found["figures"] | {"objectives": [objective("p95=1s", 2, 0.5, is_met=True)]}}
    )
    assert [line[:12] for line in lines.splitlines()[1:4]] == names
    assert re.search(r"^objective +10 users \(3\)$", lines, re.MULTILINE)
    assert [row["rung"] for row in csv.DictReader(io.StringIO(load_csv(found)))] == names
    mixed = report(rung(10), rung(20), rung(10))
    assert [row["rung"] for row in csv.DictReader(io.StringIO(load_csv(mixed)))] == [names[0], "20 users", names[1]]


def test_charts_of_rungs_of_equal_load_have_a_place_for_each() -> None:
    found = load_page(soak(0.4, 0.9, 0.5))
    latency = found[found.index("Latency, end to end") : found.index("Parts of the latency")]
    assert re.findall(r"p95: ([^<]+)</title>", latency) == ["0.4 at 1", "0.9 at 2", "0.5 at 3"]
    memory = found[found.index("Memory of all processes") : found.index("The server during each rung")]
    assert re.findall(r"memory, ([^<]+)</title>", memory) == ["1: 470", "2: 520", "3: 570"]
    assert "number of the rung" in latency and "number of the rung" in memory


def test_soak_tests_side_by_side_are_compared_rung_by_rung() -> None:
    found = load_page(soak(0.4, 0.9), [soak(0.5, 0.6), soak(0.5, 0.6, 0.7), ladder()])
    section = found[found.index("Side by side") : found.index("Distribution of latency")]
    rows = re.findall(r'<th scope="row">(10 users[^<]+)</th>', section)
    firsts = [f"10 users (1), zimage-serve ({number})" for number in (1, 2, 3)]
    assert rows[:4] == [*firsts, "10 users (2), zimage-serve (1)"]
    assert [f"zimage-serve ({number}) is in the table only" in section for number in (1, 2, 3, 4)] == [
        *(False, False, True, True)
    ]


def test_open_loop_is_behind_where_less_arrives_than_is_asked_for() -> None:
    keeps_up = said(rung(None, 1.0), rung(None, 2.0))
    assert "keeps up with every rate, up to 2 requests/s" in keeps_up
    assert "The queue grows from 4 requests/s on" in said(rung(None, 1.0), rung(None, 4.0, achieved_per_s=3.1))


def test_load_generator_that_is_late_is_named() -> None:
    late = rung(None, 4.0, latency_s=spread(1.0), late_s=spread(0.2))
    assert "too slow from 4 requests/s on: it sent 5 % of the requests more than 360 ms late" in said(
        rung(None, 1.0), late
    )
    assert "too slow" not in said(late | {"late_s": spread(0.05)})


def test_open_loop_is_not_behind_where_steady_latency_outlasts_the_rung() -> None:
    slow = rung(None, 1.0, achieved_per_s=0.75, warmup_s=6.0, latency_s=spread(20.0))  # 14 of 54 s arrive too late
    assert "keeps up with every rate" in said(slow)
    assert "The queue grows from 1 requests/s on" in said(slow | {"achieved_per_s": 0.6})


def test_idle_devices_are_said_not_to_limit() -> None:
    server = rung()["server"] | {"busy_percent": 30.0}
    assert "The devices do not limit: they spend 30.0 %" in said(rung(10, server=server, queue_s=spread(0.01)))


def test_queue_before_half_idle_devices_is_not_called_free_capacity() -> None:
    server = rung()["server"] | {"busy_percent": 60.0}
    text = said(rung(10, server=server, queue_s=spread(8.0), drawing_s=spread(1.0)))
    assert "Requests queue although the devices spend only 60.0 %" in text
    assert "do not limit" not in text


def test_wrong_images_throttles_and_unchecked_images_are_told() -> None:
    throttled = {"answers": 40, "honoured": 40, "gave_up": 0, "retry_after_s": spread(2.0)}
    text = said(rung(10, wrong_images=3, throttled=throttled, is_interrupted=True))
    assert text.startswith("10 users was interrupted after 60 s.\nWrong images: 3.")
    assert "asked 40 times to come back later (429 or 503); no request gave up" in text
    workload = report()["figures"]["workload"] | {"checks_images": False}
    assert "Images were not checked" in said(rung(10), workload=workload)


@pytest.mark.parametrize("rungs", [[], [EMPTY], [EMPTY, rung(10)], [rung(10), EMPTY]])
def test_reports_of_empty_rungs_are_written(rungs: list[dict[str, object]]) -> None:
    found = report(*rungs)
    assert load_table(found)
    assert len(load_csv(found).splitlines()) == len(rungs) + 1
    assert load_page(found, [found]).endswith("</html>\n")


def test_page_has_charts_tables_and_findings() -> None:
    found = load_page(ladder(objectives=[objective("p95=5s", 5, 6.6, is_met=False)]))
    assert found.count("<figure") == 9
    assert found.count('role="img"') == 9
    assert "Saturated at 20 users" in found
    assert "6.6 s MISSED" in found
    assert 'class="limit"' in found
    assert "GPU" not in found
    assert "No request failed" in found


def test_distribution_goes_from_none_to_all_requests() -> None:
    histogram = [{"up_to_s": up_to, "count": count} for up_to, count in ((0.1, 1), (0.2, 0), (0.4, 3))]
    found = load_page(report(rung(3, histogram=histogram)))
    values = found[found.index("Requests answered within a time") : found.index("By kind of request")]
    cells = re.findall(r"<(?:th|td)[^>]*>([^<]*)</", values)
    assert cells == ["seconds, logarithmic", "3 users", "0.05", "0", "0.1", "25", "0.2", "25", "0.4", "100"]
    assert "<svg" in load_page(report(rung(3, histogram=histogram[:1])))


def test_page_shows_failures_over_time_and_by_error() -> None:
    found = load_page(collapse())
    assert "Failed requests by error" in found
    assert "Failed requests, and requests to come back later" in found


def test_every_hostile_text_of_a_report_is_escaped() -> None:
    kinds = {HOSTILE: rung()["by_kind"]["square"]}
    gpu = {"name": HOSTILE, "utilisation_percent": 1.0, "memory_mb": 1.0, "power_w": 1.0}
    server = rung()["server"] | {"gpus": [gpu]}
    hostile = report(rung(1, by_kind=kinds, errors={HOSTILE: 1}, success_percent=99.0, server=server), name=HOSTILE)
    hostile["figures"]["target"] |= {"url": HOSTILE, "endpoint": HOSTILE, "server": {HOSTILE: HOSTILE}}
    hostile["figures"]["workload"]["mix"] = [{"name": HOSTILE, "width": HOSTILE, "height": HOSTILE, HOSTILE: HOSTILE}]
    hostile["figures"]["objectives"] = [objective(HOSTILE, 0, 1.0, is_met=True)]
    hostile |= {"hardware": {"cpu": HOSTILE, "gpus": [gpu], HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    assert "<script" not in load_page(hostile, [hostile, ladder()])
    assert "<script" not in load_page(ladder(), [hostile])


def test_runs_side_by_side_share_charts_and_table() -> None:
    found = load_page(ladder(), [collapse(), ladder()])
    section = found[found.index("Side by side") : found.index("Distribution of latency")]
    assert section.count("<figure") == 4
    assert "zimage-serve (1)" in section
    assert "zimage-serve (2)" in section
    assert "50 users, blocking FastAPI" in section


def test_different_setups_side_by_side_are_told() -> None:
    other = ladder(name="other")
    other["hardware"]["cores"] = 64
    found = load_page(ladder(), [other, report(rung(None, 2.0), name="open")])
    assert "other had another setup. cores: 64, not 2." in found
    assert "open is in the table only: its rungs do not fit into the charts of zimage-serve." in found
    assert "2 requests/s, open" in found
    assert ">open</" not in found


def test_report_is_read_from_its_file_or_from_saved_output(tmp_path: Path) -> None:
    file, output = tmp_path / "load.json", tmp_path / "load.txt"
    file.write_text(json.dumps(ladder(), indent=1))
    output.write_text(f"load  requests\n1 user  49\n{json.dumps(ladder())}\n")
    assert read_report(file) == read_report(output) == ladder()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[1]",
        "[" * 100_000,
        '{"benchmark": "http", "figures": {"rungs": []}}',
        '{"benchmark": "load"}',
        '{"benchmark": "load", "figures": 1}',
        json.dumps(ladder()).replace('"achieved_per_s"', '"throughput"'),  # of another version
        json.dumps(ladder()).replace('"load"', '"http"'),
    ],
)
def test_file_that_is_no_report_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no report of `zimage-bench load`"):
        read_report(file)
