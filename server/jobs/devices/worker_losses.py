"""Workers of one device that die in a row: after too many, the device is out of use for a while. Knows no jobs."""

import logging
from collections.abc import Callable

from server.jobs.clock import SYSTEM, Clock, Timer

log = logging.getLogger(__name__)

MAX_LOSSES = 3  # after which a device is out of use for a while
OUT_SECONDS = 60.0  # out of use after MAX_LOSSES; doubled at each further loss
MAX_OUT_SECONDS = 900.0


class WorkerLosses:
    """The workers of a device that died in a row before an image was finished.

    Args:
        device: its name.
        on_rest_over: called when the device is to be tried again.

    Attributes:
        count: of these workers.
    """

    def __init__(self, device: str, on_rest_over: Callable[[], None], clock: Clock = SYSTEM) -> None:
        self.count = 0
        self._device, self._on_rest_over, self._clock = device, on_rest_over, clock
        self._rest: Timer | None = None  # while the device is out of use

    @property
    def are_too_many(self) -> bool:
        return self.count >= MAX_LOSSES

    @property
    def is_resting(self) -> bool:
        """True if the device is out of use for a while."""
        return self._rest is not None

    def rest(self, last_failure: str | None) -> None:
        """Take the device out of use for a while."""
        self.stop()
        pause = min(OUT_SECONDS * 2.0 ** (self.count - MAX_LOSSES), MAX_OUT_SECONDS)
        log.error(
            "%s is out of use for %.0f s, since %d of its workers died in a row (%s); the other devices go on",
            self._device,
            pause,
            self.count,
            last_failure,
        )
        self._rest = self._clock.call_later(pause, self._end_rest)

    def stop(self) -> None:
        """End the rest, if there is one, without trying the device again."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _end_rest(self) -> None:
        self._rest = None
        log.warning("%s is tried again, with one image", self._device)
        self._on_rest_over()
