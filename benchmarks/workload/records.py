"""Records of requests that have ended, as lines of JSON. Knows no HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec

Outcome = Literal[
    "ok",
    "wrong_image",  # an image of something else, a black one, or none
    "throttled",  # 429 until the client lost its patience
    "refused",  # 503 until the client lost its patience
    "failed",  # another status, a broken connection, a generator that could not send it
    "timeout",  # no answer within the client's timeout
    "cut_off",  # still running when the measurement ended
]


class Throttle(msgspec.Struct, frozen=True):
    """An answer that asked the client to come back later.

    Attributes:
        at: seconds from the start of the rung.
        retry_after: seconds that it asked to wait; None if it did not say.
        is_honoured: True if the client waited so long before it tried again.
    """

    at: float
    retry_after: float | None
    is_honoured: bool


class Record(msgspec.Struct, frozen=True):
    """A request and its end. Times are in seconds from the start of the rung, unless said otherwise.

    Attributes:
        kind: name of its `RequestKind`.
        due: when it was to be sent: its arrival in an open loop, the moment of sending in a closed one.
        ended: when the last byte of its images had arrived, or it had failed.
        first_byte, first_preview: seconds after `due`; None if none came.
        status: of the last answer; 0 without one.
        images: images that it asked for; a right answer has all of them.
        throttles: answers that asked to come back later, while the client had patience.
        queue, drawing: seconds that the request waited and was drawn, as the server says; None if it does not.
    """

    kind: str
    due: float
    sent: float
    ended: float
    outcome: Outcome
    first_byte: float | None = None
    first_preview: float | None = None
    error: str = ""
    status: int = 0
    images: int = 0
    throttles: tuple[Throttle, ...] = ()
    queue: float | None = None
    drawing: float | None = None

    @property
    def latency(self) -> float:
        """Seconds from the moment at which the request was due to its end."""
        return self.ended - self.due

    @property
    def least_wait(self) -> float:
        """The latency; for a client that gave up at a 429 or 503, until the moment at which it was to come back.

        No image could have come earlier. A client without patience gives up at once, and its latency is no wait at all.
        """
        if self.outcome not in ("throttled", "refused") or not self.throttles:
            return self.latency
        last = self.throttles[-1]
        return max(self.latency, last.at + (last.retry_after or 0.0) - self.due)


def write(file: IO[bytes], record: Record) -> None:
    """Append a record to a file as one line of JSON."""
    file.write(msgspec.json.encode(record) + b"\n")


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a file; a last line without its end, as a killed process leaves it, is left out."""
    decoder = msgspec.json.Decoder(Record)
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield decoder.decode(line)
