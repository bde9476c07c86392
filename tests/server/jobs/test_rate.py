"""Rates of clients, by a clock that the system's time does not move."""

import asyncio
import time

import pytest
from fakes.loop import MANIFEST
from fastapi import Request

from server.api.access import AccessPolicy, Authenticator
from server.api.errors import ApiError
from server.jobs.admission import rate
from server.jobs.admission.rate import Rate, RateLimiter
from server.jobs.embedded import EmbeddedJobs
from server.jobs.storage.store import JobStore

SECOND = 10**9  # nanoseconds
DAY = 86400.0


class FakeClock:
    now = 0

    def __call__(self) -> int:
        return self.now


def test_quiet_client_may_send_its_amount_at_once_and_then_one_per_interval() -> None:
    clock = FakeClock()
    limiter = RateLimiter(Rate.parse("3/minute"), clock)
    assert [limiter.hit("a") for _ in range(4)] == [0, 0, 0, 20]
    clock.now = 19 * SECOND
    assert limiter.hit("a") == 1
    clock.now = 20 * SECOND
    assert [limiter.hit("a") for _ in range(2)] == [0, 20]
    assert limiter.hit("b") == 0


@pytest.mark.parametrize("text", ["1/second", "7/minute", "1000/hour", "999999999/day"])
def test_wait_is_never_longer_than_the_window(text: str) -> None:
    limiter = RateLimiter(Rate.parse(text), clock := FakeClock())
    for _ in range(20):
        assert 0 <= limiter.hit("a") <= Rate.parse(text).seconds
        clock.now += SECOND // 100


@pytest.mark.parametrize("text", ["", "often", "3 per", "0/minute", "3/week", "3/minute\n", "1" * 5000 + "/day"])
def test_other_words_are_not_a_rate(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30/minute"):
        Rate.parse(text)


def test_clients_are_forgotten_when_they_are_quiet_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MAX_CLIENTS", 100)
    limiter = RateLimiter(Rate.parse("2/minute"), clock := FakeClock())
    for number in range(1000):
        assert limiter.hit(str(number)) == 0
    assert len(limiter._due) == 100
    clock.now = 60 * SECOND
    limiter.hit("a")
    assert list(limiter._due) == ["a"]


async def counted(authenticator: Authenticator, request: Request, times: int = 1) -> None:
    for _ in range(times):
        await authenticator.count(request, None)


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_jump_of_the_system_s_time_changes_no_rate(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    authenticator = Authenticator(AccessPolicy(rate="2/minute"), EmbeddedJobs(JobStore(None), MANIFEST).hit)
    request = Request({"type": "http", "client": ("192.0.2.1", 1), "headers": []})
    asyncio.run(counted(authenticator, request, times=2))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    with pytest.raises(ApiError) as refused:
        asyncio.run(counted(authenticator, request))
    assert refused.value.headers is not None and 1 <= int(refused.value.headers["retry-after"]) <= 60


def test_addresses_of_one_ipv6_network_share_a_rate() -> None:
    authenticator = Authenticator(AccessPolicy(rate="1/hour"), EmbeddedJobs(JobStore(None), MANIFEST).hit)
    first, second = (Request({"type": "http", "client": (f"2001:db8::{n}", 1), "headers": []}) for n in (1, 2))
    asyncio.run(counted(authenticator, first))
    with pytest.raises(ApiError):
        asyncio.run(counted(authenticator, second))
