"""The frame of a chart in SVG: size, axes, grid, bands, and labels that do not overlap. It knows no series."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.reports.numbers import compact
from benchmarks.reports.scale import Scale

WIDTH, WIDE, HEIGHT = 420, 1160, 270
TOP, BOTTOM, LEFT, RIGHT = 34, 44, 16, 16  # room for titles and ticks; tick labels of the y axis come on top
LETTER = 7.2  # width of an average letter, at the size that phones get
NAME_LETTER = 8.6  # of the bold names beside lines
LINE = 16.0  # height of a line of text
LONGEST_NAME = 18  # letters of a label within a chart; longer ones end with an ellipsis
BAND_NAME = 24.0  # room above the plot for the names of bands


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: plain text, with the unit.
        is_log: logarithmic; values that are not positive are left out then. Others begin at 0.
        ticks: values with labels, in place of round numbers.
    """

    title: str
    is_log: bool = False
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the x axis with a name, such as the time of a rung."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Limit:
    """A value of the y axis with a name, such as an objective."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Frame:
    """The scales of a chart and its size in pixels."""

    x: Scale
    y: Scale
    width: float
    height: float

    def axes(self, x_title: str, y_title: str) -> str:
        """Return grid lines, ticks and titles of both axes."""
        rows = "".join(self._row(value) for value in self.y.ticks)
        labels = "".join(
            text(place, self.y.start + LINE + 2, compact(value), "tick", anchor)
            for value, place, anchor in self._columns()
        )
        base = line(self.x.start, self.y.start, self.x.end, self.y.start, "axis")
        titles = text(4, LINE - 2, y_title, "title") + text(
            (self.x.start + self.x.end) / 2, self.height - 6, x_title, "title", "middle"
        )
        return rows + base + labels + titles

    def bands(self, bands: Sequence[Band]) -> str:
        """Return every other band shaded, and the names that fit into theirs."""
        found = []
        for number, band in enumerate(bands):
            left, right = self.x.place(band.start), self.x.place(band.end)
            height = self.y.start - self.y.end + BAND_NAME
            if number % 2 == 0:
                found.append(
                    f'<rect class="band" x="{left:.1f}" y="{self.y.end - BAND_NAME:.1f}" '
                    f'width="{right - left:.1f}" height="{height:.1f}"/>'
                )
            if len(band.name) * LETTER <= right - left:
                found.append(text((left + right) / 2, self.y.end - BAND_NAME + LINE, band.name, "tick", "middle"))
        return "".join(found)

    def limits(self, limits: Sequence[Limit]) -> str:
        """Return a dashed line with a name for each limit."""
        found = []
        for limit in limits:
            place = self.y.place(limit.value)
            base = place - 5 if place > self.y.end + LINE else place + LINE - 3  # below a line at the upper edge
            found.append(line(self.x.start, place, self.x.end, place, "limit"))
            found.append(text(self.x.start + 4, base, shortened(limit.name), "limit-name"))
        return "".join(found)

    def _row(self, value: float) -> str:
        place = self.y.place(value)
        return line(self.x.start, place, self.x.end, place, "grid") + text(
            self.x.start - 6, place + 4, compact(value), "tick", "end"
        )

    def _columns(self) -> Iterable[tuple[float, float, str]]:
        """Yield ticks of the x axis whose labels have room, from the last, with their pixels and alignment."""
        left_of_next = self.width + LETTER
        for value in reversed(self.x.ticks):
            place, half = self.x.place(value), len(compact(value)) * LETTER / 2
            if place + half > self.width:
                place, half, anchor = self.width - 2, 2 * half, "end"
            else:
                anchor = "middle"
            right = place if anchor == "end" else place + half
            if right + LETTER <= left_of_next:
                left_of_next = place - half
                yield value, place, anchor


def tick_room(values: Sequence[float]) -> float:
    """Return the pixels that the labels of a y axis need."""
    return LEFT + max(len(compact(value)) for value in values) * LETTER


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name with at most `longest` letters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def spread(places: Sequence[float], low: float, high: float) -> list[float]:
    """Move heights of labels apart by a line each, in their order, between `low` and `high`."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [places[index] for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + LINE)
    bottom = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], bottom)
        bottom = moved[index] - LINE
    shift = max(low - moved[0], 0.0) if moved else 0.0
    found = [0.0] * len(places)
    for index, height in zip(order, moved, strict=True):
        found[index] = height + shift
    return found


def svg(width: float, height: float, label: str, content: str) -> str:
    """Return an SVG image with a text for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{content}</svg>'
    )


def text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    """Return a text at a place. `anchor`: start, middle or end of the text is at x."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
