"""Every request of the clients of a fleet, and what became of it. Knows answers; not the database."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from benchmarks.faults.cases import decoded
from benchmarks.fleet.plans import picture
from benchmarks.harness.pixels import Pixels
from engine.request import ImageRequest

MAX_NOTES = 20  # kept of each kind; the rest is counted


@dataclass(slots=True, eq=False)
class Request:
    """One request with its idempotency key, which the client repeats until it has an answer.

    Attributes:
        image: of the first image.
        count: number of images.
        started, ended: by time.monotonic().
        attempts: HTTP requests that asked for it.
        job: id, once the client has learned it.
        outcome: "done", "cancelled", the error code of a failure, or "no answer"; None while it runs.
        must_succeed: False if the prompt kills or hangs its worker, or if the client cancels.
    """

    key: str
    image: ImageRequest
    count: int
    started: float
    attempts: int = 0
    job: str | None = None
    ended: float | None = None
    outcome: str | None = None
    must_succeed: bool = True


@dataclass(slots=True)
class Accounts:
    """Records of all clients.

    Attributes:
        statuses: number of HTTP answers by status, and of errors without an answer by their name.
        broken: number of broken promises by kind; `notes` has the first of each kind.
        images: compared images.
        may_fail: codes with which a job may end, such as those of a storm that kills workers again and again.
    """

    requests: list[Request] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    may_fail: Collection[str] = ()

    def open(self, request: Request) -> Request:
        """Record a request before it is sent."""
        self.requests.append(request)
        return request

    def learn(self, request: Request, job: str) -> None:
        """Record the job of a request; a second one is a broken promise."""
        if request.job not in (None, job):
            self.break_promise("two jobs for one request", f"{request.key}: {request.job} and {job}")
        request.job = job

    def check_image(self, request: Request, index: int, data: bytes) -> None:
        """Compare an image with the one that the stand-in engine draws for the request, and for no other."""
        self.images += 1
        expected = picture(request.image.numbered(index), request.image.num_inference_steps or 0)
        if not _shows(data, expected):
            self.break_promise("wrong image", f"{request.job}:{index}")

    def end(self, request: Request, outcome: str, now: float) -> None:
        """Record how a request ended."""
        assert request.outcome is None, request
        request.outcome, request.ended = outcome, now
        if outcome == "no answer":
            self.break_promise("no answer", f"{request.key} ({request.job}), {request.attempts} attempts")
        elif outcome != "done" and request.must_succeed and outcome not in self.may_fail:
            self.break_promise("failed job", f"{request.job}: {outcome}")

    def break_promise(self, kind: str, note: str) -> None:
        self.broken[kind] += 1
        if self.broken[kind] <= MAX_NOTES:
            self.notes.append(f"{kind}: {note[:300]}")

    @property
    def outcomes(self) -> Counter[str]:
        """Number of requests by outcome."""
        return Counter(request.outcome or "running" for request in self.requests)

    @property
    def unfinished(self) -> list[Request]:
        return [request for request in self.requests if request.outcome is None]


def _shows(data: bytes, expected: Pixels) -> bool:
    """Return True if an image file shows exactly the expected pixels."""
    try:
        return np.array_equal(decoded(data), expected)
    except OSError:  # no image file
        return False
