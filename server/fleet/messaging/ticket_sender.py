"""Tickets of an API replica on their way to the broker, so that no answer waits for it. Knows a queue and a thread."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from server.jobs.job import Job

log = logging.getLogger(__name__)

MAX_WAITING = 1000  # tickets; hosts find the jobs of those beyond without them
REST_SECONDS = 1.0  # after a failure, in which no ticket is tried: one takes seconds while the broker is away


class TicketSender:
    """Sends tickets, one at a time.

    Args:
        send: sends the ticket of a job; returns False if the broker cannot be reached.
    """

    def __init__(self, send: Callable[[Job], bool]) -> None:
        self._send = send
        self._waiting: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._rests_until = 0.0  # by the monotonic clock
        self._thread = threading.Thread(target=self._run, name="tickets", daemon=True)  # may hang with the broker

    def start(self) -> None:
        self._thread.start()

    def put(self, job: Job) -> None:
        """Send the ticket of a job soon; never wait."""
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            log.debug("no ticket for %s: %d wait already; hosts find the job without it", job.id, MAX_WAITING)

    def close(self, timeout: float) -> None:
        """Send what waits, for `timeout` seconds at most."""
        until = time.monotonic() + timeout
        with suppress(queue.Full):
            self._waiting.put(None, timeout=timeout)
        if self._thread.is_alive():
            self._thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            if time.monotonic() < self._rests_until:
                continue
            try:
                is_sent = self._send(job)
            except Exception:  # of one ticket; the next ones must go
                log.exception("no ticket for %s; hosts find the job without it", job.id)
                is_sent = False
            if not is_sent:
                self._rests_until = time.monotonic() + REST_SECONDS
