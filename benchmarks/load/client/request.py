"""One request of a user from the moment it is due to its end, with retries after 429 and 503. Knows no Locust.

A client waits as long as Retry-After asks and tries again with the same idempotency key, until its patience is over.
"""

import http.client
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from benchmarks.load.client.cases import Case
from benchmarks.load.client.connection import Connection
from benchmarks.load.client.endpoints import Answer, Endpoint
from benchmarks.load.client.fingerprints import WrongImage
from benchmarks.workload.records import Outcome, Record, Throttle

BUSY: Mapping[int, Outcome] = {429: "throttled", 503: "refused"}
DEFAULT_WAIT = 1.0  # seconds, after a 429 or 503 that does not say how long
LEAST_WAIT = 0.1  # seconds, also if the server asks for none

WRONG_ANSWERS = (  # what connections and answers of any content raise: also text that is no path, and deep nesting
    OSError,
    http.client.HTTPException,
    msgspec.DecodeError,
    ValueError,
    RecursionError,
)

RequireRight = Callable[[Case, Sequence[bytes]], None]


@dataclass(frozen=True, slots=True)
class Session:
    """Properties that all requests of a rung share.

    Attributes:
        patience: seconds from the moment a request is due in which the client tries again.
        timeout: seconds in which an attempt must be answered.
        require_right: raises WrongImage for images that are not those of a case; None to check nothing.
        started: time.monotonic() at the start of the rung.
    """

    url: str
    endpoint: Endpoint
    headers: Mapping[str, str]
    patience: float
    timeout: float
    require_right: RequireRight | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> float:
        """Seconds since the start of the rung."""
        return time.monotonic() - self.started


class Request:
    """A request and what has happened to it so far."""

    def __init__(self, session: Session, case: Case, due: float | None = None) -> None:
        """
        Args:
            due: seconds from the start of the rung at which it was to be sent; None for now.
        """
        self._session, self._case = session, case
        self._sent = session.now
        self._due = self._sent if due is None else due
        self._throttles: list[Throttle] = []
        self._key = {"idempotency-key": uuid.uuid4().hex}

    def run(self, connection: Connection) -> Record:
        """Send the request, again after a pause where the server asks for one, until it ends."""
        while True:
            try:
                answer = self._ask(connection)
            except TimeoutError:
                connection.close()  # so that the server learns of it
                return self.end("timeout", f"no answer within {self._session.timeout:g} s")
            except WRONG_ANSWERS as error:
                connection.close()
                return self.end("failed", f"{type(error).__name__}: {error}")
            if answer.status not in BUSY:
                return self._finished(answer)
            if not self._waits_for(answer):
                return self.end(BUSY[answer.status], answer.error, answer)

    def end(self, outcome: Outcome, error: str = "", answer: Answer | None = None) -> Record:
        """Return the record of the request as it ends now."""
        kind, ended = self._case.kind, self._session.now
        answer = answer or Answer(status=0)
        return Record(
            kind=kind.name,
            due=self._due,
            sent=self._sent,
            ended=ended,
            outcome=outcome,
            first_byte=self._after_due(answer.first_byte),
            first_preview=self._after_due(answer.first_preview),
            error=error,
            status=answer.status,
            images=kind.images,
            throttles=tuple(self._throttles),
            queue=answer.queue,
            drawing=answer.drawing,
        )

    def _ask(self, connection: Connection) -> Answer:
        session = self._session
        headers = {**session.headers, **self._key}
        return session.endpoint(connection, self._case, headers, time.monotonic() + session.timeout)

    def _finished(self, answer: Answer) -> Record:
        if answer.status != 200 or answer.error:
            return self.end("failed", answer.error, answer)
        ended = self.end("ok", answer=answer)  # before the check, which takes time of its own
        if self._session.require_right is None:
            return ended
        try:
            self._session.require_right(self._case, answer.images)
        except WrongImage as error:
            return msgspec.structs.replace(ended, outcome="wrong_image", error=str(error))
        return ended

    def _waits_for(self, answer: Answer) -> bool:
        """Wait as the answer asks; return False at once if that is longer than the client's patience."""
        wait = DEFAULT_WAIT if answer.retry_after is None else answer.retry_after
        now = self._session.now
        is_honoured = now + wait <= self._due + self._session.patience
        self._throttles.append(Throttle(now, answer.retry_after, is_honoured))
        if is_honoured:
            time.sleep(max(wait, LEAST_WAIT))
        return is_honoured

    def _after_due(self, at: float | None) -> float | None:
        return None if at is None else at - self._session.started - self._due
