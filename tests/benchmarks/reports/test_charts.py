"""Charts: what is drawn where, for ordinary, missing and extreme values."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from benchmarks.reports.charts import Axis, Band, Limit, Series, bar_chart, line_chart
from benchmarks.reports.frame import LINE, spread
from benchmarks.reports.numbers import compact, percent, seconds
from benchmarks.reports.page import POLICY, Section, page, paragraph, table
from benchmarks.reports.scale import Scale

X, Y = Axis("users"), Axis("images per second")
LOG = Axis("seconds", is_log=True)
HOSTILE = """<script>alert("1")</script>'&"""


def markers(figure: str) -> list[tuple[float, float]]:
    """Return the places of the markers from left to right."""
    found = re.findall(r'class="marker" transform="translate\(([\d.-]+) ([\d.-]+)\)"', figure)
    return [(float(x), float(y)) for x, y in found]


def image(figure: str) -> ElementTree.Element:
    """Return the chart, which must be well-formed."""
    return ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])


def sizes(figure: str) -> list[tuple[float, float]]:
    """Return top and height of the bars."""
    found = re.findall(
        r'class="bar" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', figure.partition("</svg>")[0]
    )
    return [(float(y), float(height)) for y, height in found]


def test_twice_the_value_stands_twice_as_high_on_a_linear_axis() -> None:
    figure = line_chart("Throughput", X, Y, [Series("a", [(0, 0.0), (1, 4.0), (2, 8.0), (3, 10.0)])])
    zero, four, eight, _ = (y for _, y in markers(figure))
    assert zero - eight == pytest.approx(2 * (zero - four), abs=0.2)


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis() -> None:
    figure = line_chart("Latency", X, LOG, [Series("a", [(0, 0.01), (1, 0.1), (2, 1.0), (3, 10.0)])])
    heights = [y for _, y in markers(figure)]
    steps = [above - below for above, below in pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert steps[0] > 20


def test_line_has_a_gap_where_a_value_is_missing_or_not_positive_on_a_logarithmic_axis() -> None:
    points = [(1, 1.0), (2, 2.0), (3, None), (4, 3.0), (5, 4.0), (6, 0.0), (7, math.nan), (8, 5.0)]
    figure = line_chart("Latency", X, LOG, [Series("a", points)])
    path = re.search(r'class="line" d="([^"]+)"', figure)
    assert path is not None
    assert path[1].count("M") == 3
    assert len(markers(figure)) == 5


def test_point_between_gaps_is_marked_although_lines_have_no_markers() -> None:
    points = [(1, None), (2, 2.0), (3, None), (4, 3.0), (5, 4.0)]
    assert len(markers(line_chart("a", X, Y, [Series("a", points)], has_markers=False))) == 1


def test_chart_without_values_says_so_and_has_no_image() -> None:
    for series in ([], [Series("a", [])], [Series("a", [(1, None), (2, None)])]):
        figure = line_chart("Latency", X, LOG, series)
        assert "Nothing was measured." in figure
        assert "<svg" not in figure
    assert "<svg" not in bar_chart("Batches", "size", Y, ["1"], {"a": [None]})
    assert "<svg" not in bar_chart("Batches", "size", Y, [], {})


@pytest.mark.parametrize("axis", [Y, LOG])
@pytest.mark.parametrize("value", [1e-9, 1.0, 3.7, 1e15, 1e300])
def test_single_and_extreme_values_stay_within_the_image(axis: Axis, value: float) -> None:
    figure = line_chart("a", X, axis, [Series("a", [(1, value)]), Series("b", [(1, value * 7)])])
    root = image(figure)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for x, y in markers(figure):
        assert 0 <= x <= width
        assert 0 <= y <= height
    assert all(0 <= float(text.attrib["x"]) <= width for text in root.iter() if text.tag.endswith("text"))


def test_values_of_all_lines_are_in_a_table_by_x() -> None:
    figure = line_chart("Latency", X, LOG, [Series("p50", [(1, 0.5), (5, 1.0)]), Series("p95", [(5, 1.25)])])
    cells = re.findall(r"<(?:th|td)[^>]*>([^<]*)</", figure[figure.index("<details>") :])
    assert cells == ["users", "p50", "p95", "1", "0.5", "–", "5", "1", "1.25"]


def test_image_has_a_text_for_those_who_do_not_see_it() -> None:
    figure = line_chart("Latency", X, LOG, [Series("p50", [(1, 0.5), (50, 4.0)])])
    assert image(figure).attrib["role"] == "img"
    assert image(figure).attrib["aria-label"] == "Latency. p50: 0.5 at 1, 4 at 50."


def test_hostile_names_are_text_everywhere() -> None:
    figures = (
        line_chart(HOSTILE, Axis(HOSTILE), Axis(HOSTILE), [Series(HOSTILE, [(1, 1.0)]), Series("b", [(1, 2.0)])])
        + line_chart(
            "a", X, Y, [Series(HOSTILE[:8], [(1, 1.0)]), Series("b", [(1, 2.0)])], limits=[Limit(HOSTILE, 1.0)]
        )
        + line_chart("a", X, Y, [Series("a", [(1, 1.0)])], bands=[Band(HOSTILE[:8], 0, 99)], is_wide=True)
        + bar_chart(HOSTILE, HOSTILE, Axis(HOSTILE), [HOSTILE], {HOSTILE: [1.0], "b": [2.0]})
        + table(HOSTILE, [HOSTILE], [[HOSTILE]])
        + paragraph(HOSTILE)
    )
    whole = page(HOSTILE, [Section(HOSTILE, (figures,), HOSTILE)], [HOSTILE])
    assert "<script" not in whole
    assert "&lt;script&gt;" in whole
    assert 'alert("1")' not in whole


def test_page_loads_nothing_and_runs_nothing() -> None:
    whole = page("a", [Section("b", (line_chart("c", X, Y, [Series("d", [(1, 1.0)])]),))])
    assert f'http-equiv="Content-Security-Policy" content="{POLICY}"' in whole
    assert not re.search(r"<script|<link|@import|url\(|src=|href=", whole)


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    places = spread([50, 50, 52, 200, 49], 20, 226)
    assert all(abs(one - other) >= LINE for i, one in enumerate(places) for other in places[:i])
    assert places[3] == 200
    assert places[4] < places[0] < places[2]
    assert max(spread([226, 226, 226], 20, 226)) == 226


def test_long_or_many_names_are_in_a_legend() -> None:
    short = [Series(name, [(1, 1.0), (2, 2.0)]) for name in ("p50", "p95")]
    assert "legend" not in line_chart("a", X, Y, short)
    long = [Series("a server with a long name", [(1, 1.0)]), *short]
    assert line_chart("a", X, Y, long).count("<li ") == 3
    assert line_chart("a", X, Y, [Series(str(n), [(1, 1.0)]) for n in range(12)]).count("<li ") == 12


def test_legend_leaves_out_lines_without_values() -> None:
    figure = line_chart("a", X, Y, [Series("p50", [(1, 1.0)]), Series("p95", [(1, None)])])
    assert "p50</span>" in figure
    assert "p95</span>" not in figure


def test_limit_above_all_values_is_within_the_plot() -> None:
    figure = line_chart("Latency", X, LOG, [Series("p95", [(1, 0.1)])], limits=[Limit("p95=5s", 5.0), Limit("0", 0.0)])
    heights = [float(y) for y in re.findall(r'class="limit" x1="[\d.]+" y1="([\d.]+)"', figure)]
    name = re.search(r'class="limit-name" x="[\d.]+" y="([\d.]+)"', figure)
    assert name is not None
    assert float(name[1]) > heights[0]  # below, since the title of the axis is above
    assert len(heights) == 1
    assert 0 < heights[0] < markers(figure)[0][1]


def test_stacked_bars_stand_on_each_other_and_reach_the_sum() -> None:
    stacked = sizes(bar_chart("a", "load", Axis("percent"), ["1"], {"a": [30.0], "b": [70.0]}, is_stacked=True))
    (low_top, low), (high_top, high) = stacked
    assert high_top + high == pytest.approx(low_top, abs=0.2)
    assert high / low == pytest.approx(7 / 3, rel=0.01)
    (one_top, one), (other_top, other) = sizes(bar_chart("a", "load", Axis("percent"), ["1"], {"a": [3.0], "b": [7.0]}))
    assert one_top + one == pytest.approx(other_top + other, abs=0.2)


def test_bars_without_a_value_are_left_out() -> None:
    assert len(sizes(bar_chart("a", "load", Y, ["1", "2", "3"], {"a": [1.0, None, 0.0]}))) == 2


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert Scale.linear([12.3], 0, 100).ticks == (0, 5, 10, 15)
    assert Scale.linear([12.3], 100, 0).place(15) == 0
    assert Scale.linear([-3, 7], 0, 100).ticks == (-4, -2, 0, 2, 4, 6, 8)
    assert Scale.linear([0, 0], 0, 100).ticks[-1] == 1
    assert Scale.log([0.08, 6.6], 0, 100).ticks == (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
    assert Scale.log([1e-6, 1e6], 0, 100).ticks[0] == 1e-6
    assert len(Scale.log([1e-300, 1e300], 0, 100).ticks) <= 9
    assert Scale.linear([360], 0, 100, is_tight=True).place(360) == 100


def test_labels_of_crowded_ticks_are_left_out_but_for_the_last() -> None:
    figure = line_chart("a", Axis("users", ticks=tuple(range(1, 201))), Y, [Series("a", [(1, 1.0), (200, 2.0)])])
    labels = [float(one.attrib["x"]) for one in image(figure).iter() if one.text and one.text.isdecimal()]
    assert ">200</text>" in figure
    assert len(labels) < 25


def test_numbers_have_few_digits_and_a_dash_for_none() -> None:
    values = (None, math.inf, 0.0, 0.000012, 0.0815, 12.345, 999.6, 1234.5, 9999, 25_000, 3.2e6, 4e20)
    assert [compact(value) for value in values] == [
        *("–", "–", "0", "1.2e-05", "0.0815", "12.3", "1,000", "1,234", "9,999", "25k", "3.2M", "4e+20")
    ]
    assert [seconds(value) for value in (None, 0.0004, 0.9, 0.9996, 68.2, 7200)] == [
        *("–", "0.4 ms", "900 ms", "1 s", "68.2 s", "120 min")
    ]
    assert [percent(value) for value in (100.0, 99.999, 99.95, 82.0)] == ["100 %", "99.99 %", "99.95 %", "82.0 %"]
