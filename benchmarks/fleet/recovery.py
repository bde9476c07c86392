"""Times of recovery from a fault, from the clients' requests alone."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fleet.accounting import Request


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds after a fault began.

    Attributes:
        fault: name.
        mended: end of the fault itself: the process was started again, the cable plugged in.
        first_success: the first success of a request that was sent after the fault began; None if there was none.
        all_ended: the end of the last request that was under way when the fault began.
        longest_gap: longest time without a success, from the fault on.
        under_way: requests under way when the fault began.
    """

    fault: str
    mended: float
    first_success: float | None
    all_ended: float
    longest_gap: float
    under_way: int

    @classmethod
    def of(
        cls, fault: str, began: float, mended: float, requests: Sequence[Request], until: float = math.inf
    ) -> "Recovery":
        """Return the times of a fault from all requests, which have ended. `until`: start of the next fault."""
        successes = sorted(r.ended for r in requests if r.outcome == "done" and r.ended is not None)
        fresh = [r.ended for r in requests if r.outcome == "done" and r.ended is not None and r.started > began]
        caught = [r.ended for r in requests if r.ended is not None and r.started <= began < r.ended]
        after = [began, *(at for at in successes if began < at <= until)]
        return cls(
            fault,
            mended - began,
            min(fresh) - began if fresh else None,
            max(caught) - began if caught else 0.0,
            max((later - earlier for earlier, later in itertools.pairwise(after)), default=0.0),
            len(caught),
        )
