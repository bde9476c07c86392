"""Tokenizing of prompts and unpacking of init images in a thread, beside the steps.

Knows jobs and their clients; neither tokens nor the loop.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from msgspec.structs import replace

from engine.errors import InvalidRequest
from engine.fair_share import FairShare
from engine.init_image import InitImage
from engine.request import ImageRequest
from engine.sampling.tokenizer import TokenizedPrompts
from server.worker.connection import ServerConnection
from server.worker.messages import Generate, Tokenizing
from server.worker.packed_image import unpack

BYTES_PER_CHARACTER = 256  # of an image that is unpacked in the time of one character of a prompt


@dataclass(frozen=True, slots=True)
class TokenizedJob:
    """A job whose prompts are tokenized and whose init image is unpacked, or the error that this raised."""

    generate: Generate  # without its packed image
    outcome: TokenizedPrompts | BaseException
    init_image: InitImage | None = None


class PromptQueue:
    """Jobs that wait for the tokenizer. Clients get equal shares of its time.

    Args:
        tokenize: checks a request and tokenizes its prompts.
        connection: to the server, which must know whose prompts may have ended this process.
        deliver: takes each job afterwards, unless it was cancelled.
        busy: encloses the work on one prompt.
    """

    def __init__(
        self,
        tokenize: Callable[[ImageRequest], TokenizedPrompts],
        connection: ServerConnection,
        deliver: Callable[[TokenizedJob], None],
        busy: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._tokenize, self._connection, self._deliver, self._busy = tokenize, connection, deliver, busy
        self._shares: FairShare[str] = FairShare()
        self._waiting: dict[str, _Waiting] = {}  # by `Generate.key`, in the order of arrival
        self._current: Generate | None = None  # whose prompts are tokenized now, unless it was cancelled
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
        cost = len(generate.request.prompt) + len(generate.request.negative_prompt)
        cost += len(generate.init_image or b"") // BYTES_PER_CHARACTER
        with self._changed:
            self._waiting[generate.key] = _Waiting(generate, generate.cost_factor * cost)
            self._shares.add(generate.client)
            self._changed.notify()

    def cancel(self, job: str) -> None:
        """Drop what is here of a job; it is not delivered any more."""
        with self._changed:
            for waiting in [each for each in self._waiting.values() if each.generate.job == job]:
                del self._waiting[waiting.generate.key]
                self._shares.remove(waiting.generate.client)
            if self._current is not None and self._current.job == job:
                self._current = None

    def _run(self) -> None:
        while (generate := self._next()) is not None:
            self._connection.send(Tokenizing(generate.job))
            self._connection.flush()
            outcome: TokenizedPrompts | BaseException
            init_image = None
            with self._busy():
                try:
                    outcome = self._tokenize(generate.request)
                    init_image = _init_image(generate)
                except BaseException as error:  # noqa: BLE001 (a panic of the tokenizer; raised where the loop steps)
                    outcome = error
            if isinstance(outcome, TokenizedPrompts | InvalidRequest):  # else the server knows who ended this process
                self._connection.send(Tokenizing(None))
            with self._changed:
                if self._current is generate:
                    self._deliver(TokenizedJob(replace(generate, init_image=None), outcome, init_image))
                self._current = None
            del generate, init_image

    def _next(self) -> Generate | None:
        """Wait for a job and return it; return None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            oldest: dict[str, _Waiting] = {}
            for waiting in self._waiting.values():
                oldest.setdefault(waiting.generate.client, waiting)
            first = min(oldest.values(), key=lambda each: self._shares.spent(each.generate.client) + each.cost)
            generate = first.generate
            del self._waiting[generate.key]
            self._shares.charge(generate.client, first.cost)
            self._shares.remove(generate.client)
            self._current = generate
            return generate


def _init_image(generate: Generate) -> InitImage | None:
    """Return the image that a job begins with. Raises InvalidRequest: its bytes are damaged."""
    if generate.init_image is None:
        return None
    edit = generate.request.edit
    try:
        image = unpack(generate.init_image)
        if edit is None or image.digest() != edit.image:
            raise ValueError("they are of another image")
    except ValueError as error:
        message = f"the bytes of the image that this job begins with are no such image: {error}; send the request again"
        raise InvalidRequest(message, "init_image") from error
    return image


@dataclass(frozen=True, slots=True)
class _Waiting:
    generate: Generate
    cost: float  # characters, times the job's `cost_factor`
