"""The worker: steps an `EngineLoop` and carries messages between it and the server.

Knows messages and threads; not HTTP. One thread steps, one reads, one writes, one tokenizes, one sends life signs and
some finish images, so that prompts and pixels hold up steps as little as possible.
"""

import os
import queue
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from engine.errors import DeviceError, InvalidRequest, PlanCorrupt
from engine.init_image import InitImage
from engine.plan.manifest import Manifest
from engine.request import ImageFormat, ImageRequest
from engine.sampling.tokenizer import TokenizedPrompts
from engine.scheduler.events import Denoised, Event, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.prompt_cache import PromptCache
from server.worker import messages
from server.worker.connection import ServerConnection
from server.worker.finisher import ImageFinisher, failure
from server.worker.idle_measurement import IdleMeasurement
from server.worker.life_signs import LifeSigns
from server.worker.messages import Cancel, Generate, SkipMeasurement, Stop, ToWorker, image_key
from server.worker.prompt_queue import PromptQueue, TokenizedJob

# Seconds. A message for each pass of 10 ms slowed the next pass by 0.7 ms, where engine and server share two cores.
HEARTBEAT_EVERY = 0.05
MEMORY_EVERY = 10.0  # seconds
SUBMIT_SECONDS = 0.002  # for new images between two steps; one takes 20 to 50 us
MEASURE_AFTER = 2.0  # seconds without a message, before batches are measured
IDLE_SECONDS = 10.0  # before compiled kernels are saved; compiling in the background may take seconds


class Loop(Protocol):
    """`engine.scheduler.loop.EngineLoop`, or a fake."""

    prompt_cache: PromptCache

    @property
    def is_idle(self) -> bool: ...

    def device_memory(self) -> tuple[int, int] | None: ...

    def tokenize(self, request: ImageRequest) -> TokenizedPrompts: ...

    def submit(
        self,
        key: str,
        request: ImageRequest,
        previews: int = 0,
        *,
        prompts: TokenizedPrompts | None = None,
        init_image: InitImage | None = None,
        client: str = "",
        cost_factor: float = 1.0,
    ) -> None: ...

    def cancel(self, key: str) -> bool: ...

    def step(self) -> list[Event]: ...

    def save_kernels(self) -> None: ...


class Worker:
    """Generates what comes over a socket until the server asks it to stop.

    Args:
        abandon: called when the server is gone; by default it ends the process, so that no step that hangs keeps the
            GPU.
        measurement: of the batches that gain; None to measure nothing.
    """

    def __init__(
        self,
        loop: Loop,
        manifest: Manifest,
        sock: socket.socket,
        abandon: Callable[[], object] = lambda: os._exit(0),
        measurement: IdleMeasurement | None = None,
    ) -> None:
        self._loop, self._measurement = loop, measurement
        self._inbox: queue.SimpleQueue[TokenizedJob | Cancel | Stop | SkipMeasurement] = queue.SimpleQueue()
        self._connection = ServerConnection(sock, self._receive, abandon)
        self._life_signs = LifeSigns(self._connection.send)
        self._manifest = manifest
        self._finisher = ImageFinisher(manifest, self._connection.send, self._life_signs.busy)
        self._prompts = PromptQueue(loop.tokenize, self._connection, self._inbox.put, self._life_signs.busy)
        self._tokenized: dict[str, TokenizedJob] = {}  # by `Generate.key`; not submitted to the loop yet
        self._generating: dict[str, tuple[ImageFormat, InitImage | None]] = {}  # by key
        self._passes: list[tuple[int, float]] = []  # since the last heartbeat
        self._steps_done: dict[str, int] = {}  # by key, since the last heartbeat
        self._heartbeat_due = 0.0
        self._memory_due = 0.0

    def run(self, seconds: float, unusable_loras: tuple[str, ...] = (), window: int = messages.WINDOW) -> None:
        """Serve until Stop comes.

        Args:
            seconds: duration of the start.
            unusable_loras: a sentence for each LoRA that does not fit the plans.
            window: slots that the engine makes use of.

        Raises:
            DeviceError: the device failed.
            PlanCorrupt: files of the plans have changed, which a change of LoRAs finds.
        """
        self._connection.send(messages.Ready(seconds, unusable_loras, window))
        if self._measurement is not None:
            self._connection.send(self._measurement.status())
        self._connection.start()
        self._prompts.start()
        self._life_signs.start()
        try:
            while self._handle_messages():
                with self._life_signs.busy():
                    self._submit_tokenized()
                    self._handle_events(self._loop.step())
                    self._send_device_memory()
        except (DeviceError, PlanCorrupt) as error:
            self._connection.send(messages.Fatal(str(error)))
            raise
        finally:
            self._life_signs.close()
            self._prompts.close()
            self._finisher.close()
            self._connection.close()

    def stop(self) -> None:
        """Return from `run` before the next step. For any thread."""
        self._inbox.put(Stop())

    def _receive(self, message: ToWorker) -> None:
        """Pass a message of the server on, in the reading thread."""
        match message:
            case Generate():
                self._prompts.put(message)
            case Cancel(job):
                self._prompts.cancel(job)
                self._inbox.put(message)
            case Stop() | SkipMeasurement():
                self._inbox.put(message)

    def _handle_messages(self) -> bool:
        """Handle what has come since the last step; wait if there is nothing to generate. False: Stop has come."""
        while not self._inbox.empty() or (self._loop.is_idle and not self._tokenized):
            match self._next_message():
                case TokenizedJob() as tokenized:
                    self._tokenized[tokenized.generate.key] = tokenized
                case Cancel(job, indices):
                    for index in indices:
                        self._tokenized.pop(image_key(job, index), None)
                        self._loop.cancel(image_key(job, index))
                        self._forget(image_key(job, index))
                case SkipMeasurement():
                    self._skip_measurement()
                case Stop():
                    return False
        return True

    def _next_message(self) -> TokenizedJob | Cancel | Stop | SkipMeasurement:
        """Return the next message; while none comes, measure batches, and save kernels after IDLE_SECONDS."""
        if self._measurement is not None and self._measurement.is_pending:
            try:
                return self._inbox.get(timeout=MEASURE_AFTER)
            except queue.Empty:
                self._measure(self._measurement)
        try:
            return self._inbox.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            with self._life_signs.busy():
                self._loop.save_kernels()
            return self._inbox.get()

    def _measure(self, measurement: IdleMeasurement) -> None:
        """Measure batches until a message comes, which then waits for one pass at most, or until all are measured."""
        self._connection.send(measurement.status(is_running=True))
        self._connection.flush()  # the server must know what may have ended this process
        while measurement.is_pending and self._inbox.empty():
            with self._life_signs.busy():
                measurement.advance()
        self._connection.send(measurement.status())

    def _skip_measurement(self) -> None:
        if self._measurement is not None:
            self._measurement.skip()
            self._connection.send(self._measurement.status())

    def _submit_tokenized(self) -> None:
        """Submit jobs for SUBMIT_SECONDS, and one at least if there is nothing to generate."""
        until = time.perf_counter() + SUBMIT_SECONDS
        while self._tokenized and (self._loop.is_idle or time.perf_counter() < until):
            self._submit(self._tokenized.pop(next(iter(self._tokenized))))

    def _submit(self, tokenized: TokenizedJob) -> None:
        generate, prompts = tokenized.generate, tokenized.outcome
        if isinstance(prompts, InvalidRequest):
            self._refuse(generate, prompts)
            return
        if isinstance(prompts, BaseException):
            raise prompts
        try:
            generate.request.check_init_image(tokenized.init_image, self._manifest)
        except InvalidRequest as error:  # the store is damaged
            self._refuse(generate, error)
            return
        for index in generate.indices:
            key, request = image_key(generate.job, index), generate.request.numbered(index)
            self._loop.submit(
                key,
                request,
                generate.previews,
                prompts=prompts,
                init_image=tokenized.init_image,
                client=generate.client,
                cost_factor=generate.cost_factor,
            )
            self._generating[key] = generate.format, tokenized.init_image
            prompts = replace(prompts, seconds=0.0)  # spent once, for all images of the job

    def _refuse(self, generate: messages.Generate, error: InvalidRequest) -> None:
        """Send the error of a job whose images cannot be generated."""
        key = image_key(generate.job, generate.indices[0])
        self._connection.send(messages.Failed(key, "invalid_value", str(error)))

    def _forget(self, key: str) -> None:
        self._generating.pop(key, None)
        self._finisher.forget(key)

    def _handle_events(self, events: Sequence[Event]) -> None:
        has_started = has_ended = False
        for event in events:
            match event:
                case Started(key):
                    self._connection.send(messages.Started(key))
                    has_started = True
                case Passed(batch, seconds):
                    self._passes.append((batch, seconds))
                case Stepped(key, done, _, estimate):
                    self._steps_done[key] = done
                    if estimate is not None:
                        self._finisher.show_preview(key, done, estimate, *self._generating[key])
                case Denoised(key, pending):
                    has_ended = True
                    self._finisher.finish(key, pending, self._generating.pop(key)[0])
                case Failed(key, error):
                    self._forget(key)
                    self._connection.send(failure(key, error))
                case Switched(seconds):
                    self._connection.send(messages.LoraSwitched(seconds))
        if self._passes and (has_ended or time.monotonic() >= self._heartbeat_due):
            self._send_heartbeat()
        if has_started:  # before the first pass: the server must know which jobs may have killed this process
            self._connection.flush()

    def _send_heartbeat(self) -> None:
        self._heartbeat_due = time.monotonic() + HEARTBEAT_EVERY
        cache = self._loop.prompt_cache
        self._connection.send(messages.Heartbeat(self._passes, cache.hits, cache.misses, self._steps_done))
        self._passes, self._steps_done = [], {}

    def _send_device_memory(self) -> None:
        now = time.monotonic()
        if now < self._memory_due:
            return
        self._memory_due = now + MEMORY_EVERY
        if (usage := self._loop.device_memory()) is not None:
            self._connection.send(messages.DeviceMemory(*usage))
