"""Line and bar charts as inline SVG, each with its values as a table. They know nothing of what they show.

Colours are classes of the page's style, so that charts follow light and dark mode. Lines differ in colour, dashes and
markers.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

from benchmarks.reports.frame import (
    BAND_NAME,
    BOTTOM,
    HEIGHT,
    LETTER,
    LINE,
    LONGEST_NAME,
    NAME_LETTER,
    RIGHT,
    TOP,
    WIDE,
    WIDTH,
    Axis,
    Band,
    Frame,
    Limit,
    shortened,
    spread,
    svg,
    text,
    tick_room,
)
from benchmarks.reports.marks import Look, draw_bar, draw_line, looks
from benchmarks.reports.numbers import compact
from benchmarks.reports.page import details, paragraph, table
from benchmarks.reports.scale import Scale, is_drawn

__all__ = ["Axis", "Band", "Limit", "Series", "bar_chart", "line_chart"]

MOST_NAMES = 8  # names beside the lines; charts with more lines have a legend
MOST_BAR_LABELS = 14  # bars with their values above them
EMPTY = "Nothing was measured."


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart.

    Attributes:
        points: (x, y) in order; the line has a gap where y is None.
    """

    name: str
    points: Sequence[tuple[float, float | None]]


def line_chart(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    limits: Sequence[Limit] = (),
    bands: Sequence[Band] = (),
    is_wide: bool = False,
    is_ordered: bool = False,
    has_markers: bool = True,
) -> str:
    """Return a figure with a line per series.

    Names stand at the ends of the lines, or in a legend where they are many or long.

    Args:
        is_wide: as wide as the page; narrow screens scroll it sideways.
        is_ordered: shades of one colour, for series with an order, such as percentiles.
    """
    header, rows = (x.title, *(one.name for one in series)), _rows(series)
    drawn = [one for one in series if any(_is_drawn(x, y, point) for point in one.points)]
    if not drawn:
        return _figure(title, paragraph(EMPTY), header, rows, is_wide)
    has_names = len(drawn) > 1 and len(drawn) <= MOST_NAMES and max(len(one.name) for one in drawn) <= LONGEST_NAME
    names = [one.name for one in drawn] if has_names else []
    frame = _frame(x, y, drawn, limits, bands, names, is_wide)
    styles = looks(len(series), is_ordered=is_ordered)
    shown = [limit for limit in limits if is_drawn(limit.value, is_log=y.is_log)]
    content = frame.bands(bands) + frame.axes(x.title, y.title) + frame.limits(shown)
    for one, look in zip(series, styles, strict=True):
        content += draw_line(frame, one.name, one.points, look, has_markers=has_markers)
    content += _names(frame, series, styles) if has_names else ""
    image = svg(frame.width, frame.height, f"{title}. {_summary(drawn)}", content)
    shown_looks = {one.name: look for one, look in zip(series, styles, strict=True) if one in drawn}
    legend = "" if has_names or len(series) < 2 else _legend(shown_looks, is_line=True)
    return _figure(title, image + legend, header, rows, is_wide)


def bar_chart(
    title: str,
    x_title: str,
    y: Axis,
    categories: Sequence[str],
    bars: Mapping[str, Sequence[float | None]],
    *,
    is_stacked: bool = False,
    is_ordered: bool = False,
) -> str:
    """Return a figure with a group of bars, or one stacked bar, per category.

    Args:
        y: a linear axis.
        bars: for each name, a value per category, at least 0; no bar where it is None.
        is_ordered: shades of one colour, for bars with an order, such as batch sizes.
    """
    header = (x_title, *bars)
    columns = list(zip(*bars.values(), strict=True)) or [() for _ in categories]
    rows = [[name, *map(compact, values)] for name, values in zip(categories, columns, strict=True)]
    total: Callable[[Iterable[float]], float] = sum if is_stacked else partial(max, default=0.0)
    heights = [float(total(filter(None, values))) for values in columns]
    if not any(value is not None for values in columns for value in values):
        return _figure(title, paragraph(EMPTY), header, rows, False)
    bottom, end = HEIGHT - BOTTOM, TOP + LINE / 2
    y_scale = Scale.linear(heights, bottom, end)
    x_scale = Scale.linear([len(categories)], tick_room(y_scale.ticks), WIDTH - RIGHT, [len(categories)])
    frame = Frame(Scale(0, len(categories), x_scale.start, x_scale.end, False, ()), y_scale, WIDTH, HEIGHT)
    styles = looks(len(bars), is_ordered=is_ordered)
    content = frame.axes(x_title, y.title) + _categories(frame, categories)
    content += _bars(frame, categories, bars, styles, is_stacked)
    highest = max(range(len(heights)), key=heights.__getitem__)
    label = f"{title}. {len(categories)} bars; the highest is {categories[highest]} with {compact(heights[highest])}."
    legend = _legend(dict(zip(bars, styles, strict=True)), is_line=False) if len(bars) > 1 else ""
    return _figure(title, svg(WIDTH, HEIGHT, label, content) + legend, header, rows, False)


def _frame(
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    limits: Sequence[Limit],
    bands: Sequence[Band],
    names: Sequence[str],
    is_wide: bool,
) -> Frame:
    points = [point for one in series for point in one.points if _is_drawn(x, y, point)]
    heights = [*(height for _, height in points if height is not None), *(limit.value for limit in limits)]
    places = [*(place for place, _ in points), *(band.end for band in bands)]
    if len(set(places)) == 1:  # a single point stands in the middle
        places.append(2 * places[0])
    top = TOP + (BAND_NAME if bands else 0)
    bottom = HEIGHT - BOTTOM
    y_scale = Scale.log(heights, bottom, top) if y.is_log else Scale.linear(heights, bottom, top, y.ticks)
    width = WIDE if is_wide else WIDTH
    left, right = tick_room(y_scale.ticks), float(width - RIGHT)
    right -= max(map(len, names)) * NAME_LETTER if names else 0
    x_scale = Scale.log(places, left, right) if x.is_log else Scale.linear(places, left, right, x.ticks, is_tight=True)
    return Frame(x_scale, y_scale, width, HEIGHT)


def _is_drawn(x: Axis, y: Axis, point: tuple[float, float | None]) -> bool:
    place, height = point
    return is_drawn(place, is_log=x.is_log) and is_drawn(height, is_log=y.is_log)


def _names(frame: Frame, series: Sequence[Series], styles: Sequence[Look]) -> str:
    """Return the names of the lines beside their last points."""
    ends = []
    for one, look in zip(series, styles, strict=True):
        heights = [height for _, height in one.points if is_drawn(height, is_log=frame.y.is_log)]
        if heights:
            ends.append((one.name, look, frame.y.place(heights[-1] or 0.0)))
    places = spread([place for _, _, place in ends], frame.y.end, frame.y.start)
    return "".join(
        f"<g {look.attributes}>{text(frame.x.end + 10, place + 4, name, 'name')}</g>"
        for (name, look, _), place in zip(ends, places, strict=True)
    )


def _bars(
    frame: Frame,
    categories: Sequence[str],
    bars: Mapping[str, Sequence[float | None]],
    styles: Sequence[Look],
    is_stacked: bool,
) -> str:
    """Return the bars, with their values above them where they are few and not stacked."""
    slot = 0.8 / (1 if is_stacked else len(bars))
    is_labelled = not is_stacked and len(bars) * len(categories) <= MOST_BAR_LABELS
    found, tops = "", [0.0] * len(categories)
    for number, ((name, values), look) in enumerate(zip(bars.items(), styles, strict=True)):
        found += f"<g {look.attributes}>"
        for index, value in enumerate(values):
            if value is None:
                continue
            left = index + 0.1 + (0 if is_stacked else number * slot)
            bottom = tops[index] if is_stacked else 0.0
            found += draw_bar(frame, (left, left + slot), (bottom, bottom + value), f"{name}, {categories[index]}")
            tops[index] += value
            if is_labelled:
                place, height = frame.x.place(left + slot / 2), frame.y.place(value) - 4
                found += text(place, height, compact(value), "tick", "middle")
        found += "</g>"
    return found


def _categories(frame: Frame, categories: Sequence[str]) -> str:
    """Return the names below the bars, every second or third only where they have no room."""
    slot = frame.x.place(1) - frame.x.place(0)
    longest = min(max(map(len, categories), default=0), LONGEST_NAME)
    every = max(math.ceil((longest + 1) * LETTER / slot / 2), 1) if len(categories) > MOST_BAR_LABELS else 1
    letters = max(int(slot * every / LETTER), 2)
    return "".join(
        text(frame.x.place(index + 0.5), frame.y.start + LINE + 2, shortened(name, letters), "tick", "middle")
        for index, name in enumerate(categories)
        if index % every == 0
    )


def _legend(names: Mapping[str, Look], *, is_line: bool) -> str:
    items = (
        f"<li {look.attributes}>{look.sample(is_line=is_line)}<span>{escape(name)}</span></li>"
        for name, look in names.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figure(title: str, content: str, header: Sequence[str], rows: Sequence[Sequence[str]], is_wide: bool) -> str:
    kind = ' class="wide"' if is_wide else ""
    label = escape(title)
    image = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{content}</div>' if is_wide else content
    )
    values = details("Values", table(title, header, rows)) if rows else ""
    return f"<figure{kind}><figcaption>{label}</figcaption>{image}{values}</figure>"


def _rows(series: Sequence[Series]) -> list[list[str]]:
    """Return the values of all series as rows of a table, by x."""
    columns = [dict(one.points) for one in series]
    places = sorted({place for column in columns for place in column})
    return [[compact(place), *(compact(column.get(place)) for column in columns)] for place in places]


def _summary(series: Sequence[Series]) -> str:
    """Return the first and the last value of each line as a sentence."""
    found = []
    for one in series:
        points = [(place, height) for place, height in one.points if height is not None]
        (first, low), (last, high) = points[0], points[-1]
        found.append(f"{one.name}: {compact(low)} at {compact(first)}, {compact(high)} at {compact(last)}.")
    return " ".join(found)
