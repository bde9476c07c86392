"""A client of a fleet that sends as OpenAI's does: again, after a pause, until there is an answer that stands.

The replicas take its requests in turn, as behind a load balancer without affinity: every attempt goes to the next one.
"""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx

from benchmarks.fleet.accounting import Accounts, Request
from engine.request import ImageRequest

TIMEOUT = 30.0  # seconds for an answer; longer than any job takes without a fault
GIVE_UP = 120.0  # seconds after which a request has no answer
FIRST_DELAY, MAX_DELAY, MAX_RETRY_AFTER = 0.5, 8.0, 60.0  # seconds, as in openai-python
RETRIED = (408, 409, 429)  # and everything from 500 on


class Client:
    """One client.

    Args:
        urls: of the replicas.
        key: API key.
        steps: of every image.
    """

    def __init__(self, urls: Sequence[str], key: str, accounts: Accounts, seed: int, steps: int = 4) -> None:
        self.accounts, self.rng = accounts, random.Random(seed)
        self._urls, self._steps = itertools.islice(itertools.cycle(urls), seed % len(urls), None), steps
        self._http = httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def new_request(self, *, size: int = 64, count: int = 1, prompt: str | None = None) -> Request:
        """Record and return a request whose images nobody else has.

        Args:
            prompt: one that kills or hangs its worker; None for an ordinary one.
        """
        words = prompt or f"number {self.rng.getrandbits(31)}"
        image = ImageRequest(words, size, size, self.rng.getrandbits(31), self._steps)
        key = uuid.UUID(int=self.rng.getrandbits(128)).hex
        return self.accounts.open(Request(key, image, count, time.monotonic(), must_succeed=prompt is None))

    async def send(
        self, request: Request, method: str, path: str, body: dict[str, Any] | None = None
    ) -> httpx.Response:
        """Send until there is an answer that need not be repeated; a body goes with the idempotency key."""
        headers = {} if body is None else {"idempotency-key": request.key}
        for delay in _delays(self.rng):
            request.attempts += 1
            try:
                response = await self._http.request(method, next(self._urls) + path, json=body, headers=headers)
            except httpx.HTTPError as error:
                self.accounts.statuses[type(error).__name__] += 1
                await asyncio.sleep(delay)
                continue
            self._count(response)
            if not _is_retried(response):
                return response
            await asyncio.sleep(_retry_after(response) or delay)
        raise AssertionError

    @asynccontextmanager
    async def stream(self, path: str, last_event: str) -> AsyncIterator[httpx.Response]:
        """Open a stream of events after the last one that the client has; "" for all of them. Raises HTTPError."""
        headers = {"last-event-id": last_event} if last_event else {}
        async with self._http.stream("GET", next(self._urls) + path, headers=headers) as response:
            self._count(response)
            yield response

    def _count(self, response: httpx.Response) -> None:
        self.accounts.statuses[str(response.status_code)] += 1
        code = error_code(response) if response.status_code >= 400 and response.is_closed else ""
        if code == "internal_error":
            self.accounts.break_promise("internal error", f"{response.url.path}: {response.text}")
        if response.status_code == 429 and "retry-after" not in response.headers:
            self.accounts.break_promise("429 without Retry-After", response.url.path)


def error_code(response: httpx.Response) -> str:
    """Return the code of an error; the status if it has none."""
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)


def _is_retried(response: httpx.Response) -> bool:
    if (told := response.headers.get("x-should-retry")) is not None:
        return bool(told == "true")
    return response.status_code in RETRIED or response.status_code >= 500


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that an answer asks to wait, if they are reasonable."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds <= MAX_RETRY_AFTER else None


def _delays(rng: random.Random) -> Iterator[float]:
    """Yield the pauses of OpenAI's client: doubled each time up to MAX_DELAY, less up to a quarter."""
    for attempt in itertools.count():
        yield min(FIRST_DELAY * 2.0 ** min(attempt, 10), MAX_DELAY) * (1 - 0.25 * rng.random())
