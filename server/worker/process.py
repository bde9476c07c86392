"""The process that generates: an `EngineLoop` at the other end of a socket.

Knows messages and threads; not jobs, not HTTP. One thread steps, one reads, one writes, and some finish images, so
that neither pixels nor a slow reader hold up a step. When the server's end closes, the process ends at once; when the
device fails, it says so and ends, and the server starts another.

    python -m server.worker.process PLANS OPTIONS LOG_FORMAT LOG_LEVEL DESCRIPTOR
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from engine.backends.memory import Array
from engine.errors import DeviceError, InvalidRequest, LoraMismatch, NonFiniteOutput, PlanCorrupt, ZImageError
from engine.images import encode as images
from engine.images.metadata import ImageMetadata, file_metadata
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.manifest import Manifest, resolve
from engine.request import ImageFormat, ImageRequest
from engine.sampling import preview
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, Event, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_registry import LoraRegistry
from engine.scheduler.pending_image import PendingImage
from engine.scheduler.prompt_cache import PromptCache
from server import logs
from server.worker import messages
from server.worker.messages import Cancel, FromWorker, Generate, Stop, ToWorker, frame, to_worker

log = logging.getLogger(__name__)

FINISHERS = 2  # threads for pixels and encoding
# Seconds. A message for each pass of 10 ms slowed the next pass by 0.7 ms, where engine and server share two cores.
PULSE_EVERY = 0.05
FLUSH_SECONDS = 5.0  # for a server that does not read
MEMORY_EVERY = 10.0  # seconds
DEVICE_LOST = 3  # exit status


class Loop(Protocol):
    """`engine.scheduler.loop.EngineLoop`, or a fake."""

    prompt_cache: PromptCache

    @property
    def is_idle(self) -> bool: ...

    def device_memory(self) -> tuple[int, int] | None: ...

    def submit(self, key: str, request: ImageRequest, previews: int = 0) -> None: ...

    def cancel(self, key: str) -> bool: ...

    def step(self) -> list[Event]: ...


class Worker:
    """Generates what comes over a socket until it is told to stop.

    Args:
        abandon: called when the server is gone, and with it whoever waits; a step that hangs must not keep the GPU.
    """

    def __init__(
        self, loop: Loop, manifest: Manifest, sock: socket.socket, abandon: Callable[[], object] = lambda: os._exit(0)
    ) -> None:
        self._loop, self._manifest, self._sock, self._abandon = loop, manifest, sock, abandon
        self._generates: dict[str, Generate] = {}  # under way
        self._last: dict[str, Future[None]] = {}  # what finishers do for an image
        self._inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[FromWorker | threading.Event | None] = queue.SimpleQueue()
        self._passes: list[tuple[int, float]] = []  # that the server does not know of yet
        self._done: dict[str, int] = {}  # steps, likewise
        self._pulse_due = 0.0
        self._memory_due = 0.0  # when to tell of the device's memory again
        self._finishers = ThreadPoolExecutor(FINISHERS, thread_name_prefix="finisher")

    def run(self, seconds: float, unusable: tuple[str, ...] = ()) -> None:
        """Serves; returns when it was told to stop.

        Args:
            seconds: that the start took.
            unusable: LoRAs that the plans do not take, and why.

        Raises:
            DeviceError: the device failed.
            PlanCorrupt: the plans were altered, as is seen when a LoRA is to be put in.
        """
        writer = threading.Thread(target=self._write, name="writer")
        writer.start()
        self.send(messages.Ready(seconds, unusable))
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            while self._take_in():
                self._tell(self._loop.step())
                self._tell_memory()
        except (DeviceError, PlanCorrupt) as error:
            self.send(messages.Lost(str(error)))
            raise
        finally:
            self._finishers.shutdown(cancel_futures=True)
            self._outbox.put(None)
            writer.join()

    def send(self, message: FromWorker) -> None:
        self._outbox.put(message)

    def _take_in(self) -> bool:
        """What has come since the last step; waits for it if there is nothing to do. False at the end."""
        while self._loop.is_idle or not self._inbox.empty():
            came = [self._inbox.get()]
            while not self._inbox.empty():
                came.append(self._inbox.get())
            called_off = {message.key for message in came if isinstance(message, Cancel)}
            for message in came:
                match message:
                    case Generate(key) as generate if key not in called_off:  # a long prompt takes long to read
                        self._begin(generate)
                    case Cancel(key):
                        self._loop.cancel(key)
                        self._forget(key)
                    case Stop():
                        return False
        return True

    def _begin(self, generate: Generate) -> None:
        try:
            self._loop.submit(generate.key, generate.request, generate.previews)
        except InvalidRequest as error:
            self.send(messages.Failed(generate.key, "invalid_value", str(error)))
        else:
            self._generates[generate.key] = generate

    def _forget(self, key: str) -> None:
        self._generates.pop(key, None)
        self._last.pop(key, None)

    def _tell(self, events: Sequence[Event]) -> None:
        has_begun = has_ended = False
        for event in events:
            match event:
                case Started(key):
                    self.send(messages.Started(key))
                    has_begun = True
                case Passed(batch, seconds):
                    self._passes.append((batch, seconds))
                case Stepped(key, step, _, estimate):
                    self._done[key] = step
                    if estimate is not None:
                        self._later(key, partial(self._show, key, step, estimate, self._generates[key].format))
                case Denoised(key, pending):
                    has_ended = True
                    self._later(key, partial(self._finish, key, pending, self._generates[key]))
                    self._forget(key)
                case Failed(key, error):
                    self._forget(key)
                    self._fail(key, error)
                case Switched(seconds):
                    self.send(messages.Switched(seconds))
        if self._passes and (has_ended or time.monotonic() >= self._pulse_due):
            self._tell_passes()
        if has_begun:  # the server is to know before the first pass, which may end this process
            self._flush()

    def _tell_passes(self) -> None:
        self._pulse_due = time.monotonic() + PULSE_EVERY
        prompt_cache = self._loop.prompt_cache
        self.send(messages.Heartbeat(self._passes, prompt_cache.hits, prompt_cache.misses, self._done))
        self._passes, self._done = [], {}

    def _flush(self) -> None:
        """Waits until what was sent is out of this process."""
        flushed = threading.Event()
        self._outbox.put(flushed)
        flushed.wait(FLUSH_SECONDS)

    def _tell_memory(self) -> None:
        """At most every MEMORY_EVERY seconds."""
        now = time.monotonic()
        if now < self._memory_due:
            return
        self._memory_due = now + MEMORY_EVERY
        if (usage := self._loop.device_memory()) is not None:
            self.send(messages.DeviceMemory(*usage))

    def _later(self, key: str, work: Callable[[], None]) -> None:
        """In a finisher, after what a finisher still does for this image: a preview is not to come after the end."""
        before = self._last.get(key)

        def run() -> None:
            if before is not None:
                wait([before])  # came first to the same threads, so it has begun
            work()

        self._last[key] = self._finishers.submit(run)

    def _fail(self, key: str, error: ZImageError) -> None:
        self.send(messages.Failed(key, _code(error), str(error)))

    def _show(self, key: str, done: int, estimate: Array, image_format: ImageFormat) -> None:
        assert self._manifest.preview is not None
        try:
            pixels = preview.project(self._manifest.preview, estimate)
            large = images.enlarge(pixels, self._manifest.model.vae_scale)
            self.send(messages.Preview(key, done, images.encode(large, image_format)))
        except Exception:  # the image itself may be none the worse
            log.exception("a preview of %s could not be made", key)

    def _finish(self, key: str, pending: PendingImage, generate: Generate) -> None:
        request = generate.request
        try:
            image = pending.finish()
            started = time.perf_counter()
            metadata = ImageMetadata.of(self._manifest, request, image)
            data = images.encode(image.pixels, generate.format, file_metadata(request, metadata))
        except DeviceError as error:  # the loop will meet it too, if it goes on
            self.send(messages.Lost(str(error)))
        except ZImageError as error:
            self._fail(key, error)
        except Exception:
            log.exception("%s could not be encoded", key)
            self.send(messages.Failed(key, "internal_error", "the image could not be encoded"))
        else:
            self.send(messages.Finished(key, data, metadata.with_encoding(time.perf_counter() - started)))

    def _read(self) -> None:
        try:
            with self._sock.makefile("rb") as stream:
                while header := stream.read(messages.LENGTH.size):
                    (length,) = messages.LENGTH.unpack(header)
                    self._inbox.put(to_worker(stream.read(length)))
        finally:  # also in the middle of a frame
            self._abandon()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            if isinstance(message, threading.Event):
                message.set()
                continue
            try:
                self._sock.sendall(frame(message))
            except OSError:
                return  # the reader sees it too


def _code(error: ZImageError) -> str:
    match error:
        case NonFiniteOutput():
            return "non_finite_output"
        case LoraMismatch():
            return "lora_unavailable"
    return "device_error"


def warm_up(loop: EngineLoop) -> None:
    """Generates the smallest image in one step: plans that cannot run fail here, before anything is served."""
    smallest = min(loop.pipeline.manifest.profiles, key=lambda p: p.height.min * p.width.min)
    loop.generate(ImageRequest("warm-up", smallest.width.min, smallest.height.min, num_inference_steps=1))


def _leave_with(sock: socket.socket) -> None:
    """Ends a process that is still loading when the server is gone."""
    if len(sock.recv(1, socket.MSG_PEEK)) == 0:
        os._exit(0)


def main(argv: list[str]) -> None:
    """Entry point of the process; the server reads why it ended from its last message."""
    started = time.perf_counter()
    directory, options, descriptor = Path(argv[0]), RuntimeOptions.decode(argv[1]), int(argv[4])
    for kind in (signal.SIGINT, signal.SIGTERM):  # which may go to the whole group; the server says when to stop
        signal.signal(kind, signal.SIG_IGN)
    logs.configure("json" if argv[2] == "json" else "text", argv[3], process="worker")
    with ExitStack() as owned:
        sock = owned.enter_context(socket.socket(fileno=descriptor))
        threading.Thread(target=_leave_with, args=[sock], daemon=True).start()
        try:
            pipeline = owned.enter_context(Pipeline.load(directory, options))
            loras = LoraRegistry(pipeline, dict(options.loras))
            unusable = loras.check()
            table = BatchTable.read(resolve(directory))
            if not table.rows:
                log.info("one image at a time: zimage-bench batching, run once, measures which gain from company")
            loop = EngineLoop(pipeline, table, loras)
            warm_up(loop)
        except (ZImageError, OSError) as error:
            sock.sendall(frame(messages.Refused(str(error))))
            return
        try:
            Worker(loop, pipeline.manifest, sock).run(time.perf_counter() - started, unusable)
        except (DeviceError, PlanCorrupt) as error:
            log.error("%s", error)
            sys.exit(DEVICE_LOST)


if __name__ == "__main__":
    main(sys.argv[1:])
