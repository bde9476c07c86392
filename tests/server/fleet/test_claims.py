"""Claims of a host: when it claims, which ticket a job goes to, and which tickets go back."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fakes.jobs import job

from server.errors import StoreUnavailable
from server.fleet.host import claims
from server.fleet.host.claims import Claims
from server.jobs.job import JobState
from server.jobs.live_job import LiveJob


class FakeHost:
    """Room, and jobs that wait."""

    def __init__(self, room: int = 4) -> None:
        self.room, self.waiting, self.calls, self.full = room, list[LiveJob](), list[int](), 0
        self.during: Callable[[], Awaitable[object]] | None = None
        self.error: Exception | None = None
        self.has_idle_device = True
        self.claims = Claims(self._claim, lambda: self.room, lambda: self.has_idle_device, self._on_waiting)

    async def _claim(self, images: int) -> list[LiveJob]:
        self.calls.append(images)
        error, self.error = self.error, None
        found, self.waiting = self.waiting[:images], self.waiting[images:]
        if (during := self.during) is not None:
            self.during = None
            await during()
        if error is not None:
            raise error
        self.room -= len(found)
        return found

    def _on_waiting(self) -> None:
        self.full += 1


Story = Callable[[FakeHost], Awaitable[None]]


def play(story: Story, room: int = 4) -> FakeHost:
    host = FakeHost(room)

    async def run() -> None:
        running = asyncio.create_task(host.claims.run())
        try:
            async with asyncio.timeout(20):
                await story(host)
        finally:
            running.cancel()

    asyncio.run(run())
    return host


def ends(live: LiveJob, state: JobState = JobState.DONE) -> None:
    from dataclasses import replace

    live.job = replace(live.job, state=state, finished=2.0)
    live.ended.set()


def test_ticket_is_held_until_the_job_that_was_claimed_for_it_has_ended() -> None:
    async def story(host: FakeHost) -> None:
        host.waiting = [live := LiveJob(job())]
        ticket = asyncio.create_task(host.claims.hold())
        while not host.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not ticket.done()
        ends(live)
        assert await ticket
        assert (host.claims.by_ticket, host.claims.by_poll) == (1, 0)

    play(story)


def test_ticket_without_a_job_is_acknowledged_at_once() -> None:
    async def story(host: FakeHost) -> None:
        assert await host.claims.hold()

    assert play(story).calls == [1]


def test_job_without_a_ticket_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.01)

    async def story(host: FakeHost) -> None:
        host.waiting = [LiveJob(job())]
        while host.waiting:
            await asyncio.sleep(0.01)
        assert (host.claims.by_ticket, host.claims.by_poll) == (0, 1)

    play(story)


def test_jobs_are_left_to_other_hosts_until_their_tickets_come() -> None:
    async def story(host: FakeHost) -> None:
        host.has_idle_device = False
        host.waiting = [LiveJob(job()) for _ in range(4)]
        tickets = [asyncio.create_task(host.claims.hold())]
        while not host.claims.by_ticket:
            await asyncio.sleep(0)
        host.claims.wake()
        await asyncio.sleep(0.01)
        assert len(host.waiting) == 3
        tickets += [asyncio.create_task(host.claims.hold()) for _ in range(2)]
        while host.claims.by_ticket < 3:
            await asyncio.sleep(0)
        assert (host.calls, len(host.waiting)) == ([1, 2], 1)
        host.claims.close()
        for ticket in tickets:
            ticket.cancel()

    play(story)


def test_poll_claims_all_that_the_host_has_room_for_however_often_it_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.01)

    async def story(host: FakeHost) -> None:
        host.has_idle_device = False
        host.waiting = [LiveJob(job()) for _ in range(4)]
        while host.waiting:
            host.claims.wake()
            await asyncio.sleep(0)

    assert 4 in play(story).calls


def test_idle_device_gets_a_job_without_a_ticket_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLL_SECONDS", 60.0)

    async def story(host: FakeHost) -> None:
        host.waiting = [LiveJob(job())]
        host.claims.wake()
        while host.waiting:
            await asyncio.sleep(0)

    assert play(story).calls[0] == 1


def test_ticket_that_comes_during_a_claim_leads_to_another_one() -> None:
    """Its job may have been stored after that claim had read the queue."""

    async def story(host: FakeHost) -> None:
        late: list[asyncio.Task[bool]] = []
        live = LiveJob(job())

        async def during() -> None:
            late.append(asyncio.create_task(host.claims.hold()))
            host.waiting = [live]
            await asyncio.sleep(0.01)

        host.during = during
        assert await host.claims.hold()
        while live in host.waiting:
            await asyncio.sleep(0)
        ends(live)
        assert await late[0]
        assert host.claims.by_ticket == 1

    play(story)


def test_ticket_waits_for_room_and_other_hosts_are_told() -> None:
    async def story(host: FakeHost) -> None:
        host.waiting = [live := LiveJob(job())]
        ticket = asyncio.create_task(host.claims.hold())
        await asyncio.sleep(0.01)
        assert (host.calls, host.full, ticket.done()) == ([], 1, False)
        host.room = 1
        host.claims.wake()
        while host.waiting:
            await asyncio.sleep(0)
        ends(live)
        assert await ticket

    play(story, room=0)


def test_tickets_go_back_when_the_host_drains_and_when_it_gives_their_jobs_back() -> None:
    async def story(host: FakeHost) -> None:
        host.waiting = [live := LiveJob(job())]
        with_job = asyncio.create_task(host.claims.hold())
        while host.waiting:
            await asyncio.sleep(0)
        host.room = 0
        waiting = asyncio.create_task(host.claims.hold())
        await asyncio.sleep(0.01)
        host.claims.close()
        assert not await waiting
        assert not await host.claims.hold()
        ends(live, JobState.CANCELLED)
        assert not await with_job

    play(story)


@pytest.mark.parametrize("error", [StoreUnavailable("the database is away"), RuntimeError("unexpected")])
def test_host_claims_again_after_an_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.01)

    async def story(host: FakeHost) -> None:
        host.error = error
        assert await host.claims.hold()

    assert len(play(story).calls) >= 2


def test_ticket_is_acknowledged_before_the_broker_loses_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HOLD_SECONDS", 0.05)

    async def story(host: FakeHost) -> None:
        host.waiting = [LiveJob(job())]
        assert await host.claims.hold()
        host.room = 0
        assert await host.claims.hold()  # it has waited for room
        host.room, host.waiting = 1, [LiveJob(job())]
        host.claims.wake()
        while host.waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert (host.claims.by_ticket, host.claims.by_poll) == (1, 1)

    play(story)
