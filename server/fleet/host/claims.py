"""Claims of a host: when it asks the database for jobs, and how long it holds tickets.

Knows room and tickets; neither the broker nor what a job asks for. A host with room claims an image for each ticket
and, while a device has nothing to do, one more. Once a second it claims all that it has room for, so a broker that is
away costs a second, never a job.

A host that claimed all it has room for at every ticket would queue jobs that idle hosts could begin: of six jobs of 1 s
on six idle hosts, the last one took 3 s.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from server.errors import StoreUnavailable
from server.jobs.job import JobState
from server.jobs.live_job import LiveJob

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between two claims without a ticket
# A ticket is acknowledged after this time at most, even if its job has not ended: RabbitMQ closes the channel of a
# consumer that has not acknowledged for 30 minutes (consumer_timeout)
HOLD_SECONDS = 20 * 60.0


class Claims:
    """Claims jobs while there is room.

    Args:
        claim: claims jobs with up to a number of images, and returns those that begin here.
        room: returns the number of images that could be taken now.
        has_idle_device: returns True if a device could begin an image now.
        on_waiting: called when a ticket must wait for room; another host may have some.

    Attributes:
        by_ticket, by_poll: jobs that were claimed for a ticket, and without one.
    """

    def __init__(
        self,
        claim: Callable[[int], Awaitable[list[LiveJob]]],
        room: Callable[[], int],
        has_idle_device: Callable[[], bool],
        on_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        self._claim, self._room, self._has_idle_device, self._on_waiting = claim, room, has_idle_device, on_waiting
        self._tickets: deque[asyncio.Future[LiveJob | None]] = deque()  # that have no job yet
        self._wake = asyncio.Event()
        self._is_open = True
        self.by_ticket = self.by_poll = 0

    @property
    def is_open(self) -> bool:
        return self._is_open

    def wake(self) -> None:
        """Claim now, if there is room: there is more of it, or a job waits."""
        self._wake.set()

    def close(self) -> None:
        """Claim no more, and give back the tickets that have no job yet."""
        self._is_open = False
        self._answer(len(self._tickets))

    async def hold(self) -> bool:
        """Hold a ticket until a job that was claimed for it has ended and is stored, or until no job waits.

        Returns:
            True if the ticket has done its work; False if it is for another host.
        """
        if not self._is_open:
            return False
        ticket = asyncio.get_running_loop().create_future()
        self._tickets.append(ticket)
        self.wake()
        if self._room() <= 0:
            self._on_waiting()
        with suppress(TimeoutError):
            async with asyncio.timeout(HOLD_SECONDS):
                live = await ticket
                if live is None:
                    return self._is_open
                await live.ended.wait()
                await live.saved()
                return live.job.state is not JobState.CANCELLED  # a job that was given back needs its ticket elsewhere
        return True

    async def run(self) -> None:
        """Claim until the task is cancelled."""
        clock = asyncio.get_running_loop()
        poll_at = clock.time() + POLL_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(poll_at):
                    await self._wake.wait()
            self._wake.clear()
            is_poll = clock.time() >= poll_at
            if is_poll:
                poll_at = clock.time() + POLL_SECONDS
            try:
                await self._fill(is_poll=is_poll)
            except StoreUnavailable as error:
                log.error("no jobs can be claimed: %s", error)
                await asyncio.sleep(POLL_SECONDS)
            except Exception:  # the host must not stop claiming unnoticed
                log.exception("claiming jobs failed")
                await asyncio.sleep(POLL_SECONDS)

    async def _fill(self, *, is_poll: bool) -> None:
        """Claim until no more images are wanted, or no job waits."""
        while self._is_open and (images := self._wanted(is_poll=is_poll)) > 0:
            before = len(self._tickets)  # a ticket that comes during the claim may be of a job that it has not seen
            begun = await self._claim(images)
            for live in begun:
                self._give(live)
            if not begun:
                self._answer(min(before, len(self._tickets)))  # another one has set `_wake`
                return

    def _wanted(self, *, is_poll: bool) -> int:
        if is_poll:
            return self._room()
        return min(self._room(), len(self._tickets) or int(self._has_idle_device()))

    def _give(self, live: LiveJob) -> None:
        """Give a job to the ticket that has waited longest."""
        while self._tickets:
            ticket = self._tickets.popleft()
            if not ticket.done():  # it was held for too long
                ticket.set_result(live)
                self.by_ticket += 1
                return
        self.by_poll += 1

    def _answer(self, count: int) -> None:
        """Tell the first tickets that there is no job for them."""
        for _ in range(count):
            ticket = self._tickets.popleft()
            if not ticket.done():
                ticket.set_result(None)
