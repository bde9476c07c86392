"""Tokenizing of prompts in a thread, beside the steps. Knows jobs and their clients; neither tokens nor the loop."""

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass

from engine.fair_order import FairOrder
from engine.request import ImageRequest
from engine.sampling.tokenizer import TokenizedPrompts
from server.worker.connection import ServerConnection
from server.worker.life_signs import Activity
from server.worker.messages import Generate, Tokenizing


@dataclass(frozen=True, slots=True)
class TokenizedJob:
    """A job whose prompts are tokenized, or the error that this raised."""

    generate: Generate
    outcome: TokenizedPrompts | Exception


class PromptQueue:
    """Jobs that wait for the tokenizer. Clients take turns, in proportion to the length of their prompts.

    Args:
        tokenize: checks a request and tokenizes its prompts.
        connection: to the server, which must know whose prompts may have ended this process.
        deliver: takes each job afterwards, unless it was cancelled.
        activity: is busy while a prompt is tokenized.
    """

    def __init__(
        self,
        tokenize: Callable[[ImageRequest], TokenizedPrompts],
        connection: ServerConnection,
        deliver: Callable[[TokenizedJob], None],
        activity: Activity,
    ) -> None:
        self._tokenize, self._connection, self._deliver, self._activity = tokenize, connection, deliver, activity
        self._order = FairOrder()
        self._tags: list[tuple[float, int, str]] = []  # heap of tag, order of arrival and job; some were cancelled
        self._arrived = 0
        self._waiting: dict[str, Generate] = {}  # by job, with the one that is tokenized now
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tokenizer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Tokenize nothing more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def put(self, generate: Generate) -> None:
        """Queue a job."""
        request = generate.request
        with self._changed:
            self._arrived += 1
            tag = self._order.add(generate.client, len(request.prompt) + len(request.negative_prompt))
            heapq.heappush(self._tags, (tag, self._arrived, generate.job))
            self._waiting[generate.job] = generate
            self._changed.notify()

    def cancel(self, job: str) -> bool:
        """Drop a job. Return False if it is not here, since it was delivered."""
        with self._changed:
            return self._waiting.pop(job, None) is not None

    def _run(self) -> None:
        while (generate := self._next()) is not None:
            self._connection.send(Tokenizing(generate.job))
            self._connection.flush()
            outcome: TokenizedPrompts | Exception
            with self._activity:
                try:
                    outcome = self._tokenize(generate.request)
                except Exception as error:  # noqa: BLE001 (raised again in the thread that steps)
                    outcome = error
            self._connection.send(Tokenizing(None))
            with self._changed:
                if self._waiting.get(generate.job) is generate:
                    del self._waiting[generate.job]
                    self._deliver(TokenizedJob(generate, outcome))

    def _next(self) -> Generate | None:
        """Return the next job, or None after `close`. The job stays in `_waiting`, so that it can be cancelled."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._tags or self._is_closed)
                if self._is_closed:
                    return None
                tag, _, job = heapq.heappop(self._tags)
                self._order.start(tag)
                if job in self._waiting:
                    return self._waiting[job]
