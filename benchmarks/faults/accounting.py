"""Jobs, ends, images and errors as clients have seen them. Knows answers; not the server's own records."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.faults.cases import Case, is_same
from benchmarks.harness.pixels import Pixels
from engine.request import ImageKind

MAX_NOTES = 20  # kept of each kind; the rest is counted


@dataclass(frozen=True, slots=True)
class Lost:
    """A request without an answer, from `started` to `ended` by time.monotonic()."""

    action: str
    started: float
    ended: float
    error: str


@dataclass(slots=True)
class Accounts:
    """Records of all clients.

    Attributes:
        expected: image that the engine alone generates, by case and index.
        accepted: case of each job whose id a client knows.
        deleted: jobs that clients have cancelled or deleted.
        ends: final state that a client was told, by job.
        answered: images that a client has, by job and index.
        outcomes: number of answers by action and outcome.
        codes: number of failures by code.
        broken: number of broken promises by kind; `notes` has the first of each kind.
        images: compared images.
    """

    expected: Mapping[tuple[Case, int], Pixels]
    accepted: dict[str, Case] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    ends: dict[str, str] = field(default_factory=dict)
    answered: set[tuple[str, int]] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    innocent: list[tuple[float, float]] = field(default_factory=list)  # start and end of each request
    images: int = 0

    def accept(self, job: str, case: Case) -> None:
        """Record an accepted job; one id for two cases is a broken promise."""
        if self.accepted.setdefault(job, case) != case:
            self.break_promise("one job for two requests", job)

    def check_image(self, job: str, index: int, data: bytes, kind: ImageKind = "png") -> None:
        """Compare an image of an accepted job with the engine's own."""
        self.images += 1
        self.answered.add((job, index))
        if not is_same(data, self.expected[self.accepted[job], index], kind):
            self.break_promise("wrong image", f"{job}:{index}")

    def end(self, job: str, state: str) -> None:
        """Record the final state of a job; a second one must be equal."""
        if self.ends.setdefault(job, state) != state:
            self.break_promise("two ends", f"{job}: {self.ends[job]}, then {state}")

    def lose(self, action: str, started: float, error: BaseException) -> None:
        """Record a request that got no answer."""
        self.outcomes[f"{action}: no answer"] += 1
        self.lost.append(Lost(action, started, time.monotonic(), f"{type(error).__name__}: {error}"))

    def break_promise(self, kind: str, note: str) -> None:
        self.broken[kind] += 1
        if self.broken[kind] <= MAX_NOTES:
            self.notes.append(f"{kind}: {note[:300]}")
