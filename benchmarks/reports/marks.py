"""Lines, markers and bars of a chart, and the looks that tell them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.reports.frame import Frame
from benchmarks.reports.numbers import compact
from benchmarks.reports.scale import is_drawn

COLOURS = 6  # classes series-1 to series-6 of the page's style
DASHES = ("", "7 4", "2 4", "10 4 2 4")
SHAPES = (  # paths around 0, 0
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.5,-3.5h7v7h-7z",
    "M0,-5l5,5l-5,5l-5,-5z",
    "M0,-5l5,8.5h-10z",
    "M0,5l5,-8.5h-10z",
    "M-5,-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
)
REACH = 10  # pixels around a marker in which the pointer shows its values
MOST_MARKERS = 60  # points of a line with markers


@dataclass(frozen=True, slots=True)
class Look:
    """Colour, dashes and marker of a series.

    Attributes:
        attributes: of the element around its marks.
    """

    attributes: str
    dashes: str
    shape: str

    def sample(self, *, is_line: bool) -> str:
        """Return a piece of line with a marker, or of a bar, for a legend."""
        bar = '<rect class="bar" x="9" y="1" width="12" height="12"/>'
        content = self.line("M0,7H30") + self._marker(15, 7) if is_line else bar
        return f'<svg viewBox="0 0 30 14" aria-hidden="true">{content}</svg>'

    def line(self, path: str) -> str:
        """Return a line along a path."""
        dashes = f' stroke-dasharray="{self.dashes}"' if self.dashes else ""
        return f'<path class="line" d="{path}"{dashes}/>'

    def marker(self, x: float, y: float, label: str) -> str:
        """Return a marker that shows a text under the pointer."""
        reach = f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="{REACH}"/>'
        return f"<g><title>{escape(label)}</title>{self._marker(x, y)}{reach}</g>"

    def _marker(self, x: float, y: float) -> str:
        return f'<path class="marker" transform="translate({x:.1f} {y:.1f})" d="{self.shape}"/>'


def looks(count: int, *, is_ordered: bool) -> list[Look]:
    """Return a look for each of `count` series. `is_ordered`: shades of one colour, the last the strongest."""
    if not is_ordered:
        return [
            Look(f'class="series-{number % COLOURS + 1}"', DASHES[number % len(DASHES)], SHAPES[number % len(SHAPES)])
            for number in range(count)
        ]
    shares = [100 * number / max(count - 1, 1) for number in range(count)]
    return [
        Look(f'style="color:color-mix(in oklab, var(--ordered-high) {share:.0f}%, var(--ordered-low))"', "", shape)
        for share, shape in zip(shares, (SHAPES[number % len(SHAPES)] for number in range(count)), strict=True)
    ]


def draw_line(
    frame: Frame, name: str, points: Sequence[tuple[float, float | None]], look: Look, *, has_markers: bool
) -> str:
    """Return a line with a gap at each point without a place, and markers if they are few enough."""
    path, markers, is_open = "", "", False
    are_marked = has_markers and len(points) <= MOST_MARKERS
    for index, (x, y) in enumerate(points):
        if y is None or not (is_drawn(x, is_log=frame.x.is_log) and is_drawn(y, is_log=frame.y.is_log)):
            is_open = False
            continue
        across, down = frame.x.place(x), frame.y.place(y)
        path += f"{'L' if is_open else 'M'}{across:.1f},{down:.1f}"
        is_alone = not is_open and (index + 1 == len(points) or points[index + 1][1] is None)
        is_open = True
        if are_marked or is_alone:  # a point between gaps has no line that shows it
            markers += look.marker(across, down, f"{name}: {compact(y)} at {compact(x)}")
    return f"<g {look.attributes}>{look.line(path) if path else ''}{markers}</g>"


def draw_bar(frame: Frame, across: tuple[float, float], up: tuple[float, float], label: str) -> str:
    """Return a bar from `up[0]` to `up[1]` that shows its value under the pointer."""
    left, right = map(frame.x.place, across)
    bottom, top = map(frame.y.place, up)
    title = f"<title>{escape(label)}: {compact(up[1] - up[0])}</title>"
    size = f'width="{max(right - left - 1, 1):.1f}" height="{bottom - top:.1f}"'
    return f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" {size}>{title}</rect>'
