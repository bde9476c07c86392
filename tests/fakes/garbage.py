"""Workers that take a job, begin it and then write garbage."""

import asyncio
import math
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import msgspec
from fakes.jobs import METADATA

from engine.stages import StageTimes
from server.worker.messages import (
    LENGTH,
    Batching,
    Failed,
    Finished,
    FromWorker,
    Generate,
    Heartbeat,
    MeasuredSize,
    PreviewReady,
    Ready,
    Started,
    Stop,
    decode_to_worker,
    encode_frame,
)
from server.worker.supervisor import Supervisor, WorkerListener, WorkerTimeouts

Garbage = Callable[[str], bytes]  # from the id of a job of two images


def framed(body: object) -> bytes:
    encoded = msgspec.msgpack.encode(body)
    return LENGTH.pack(len(encoded)) + encoded


def frames(*messages: FromWorker) -> bytes:
    return b"".join(map(encode_frame, messages))


def heartbeat(*passes: tuple[int, float], steps_done: dict[str, int] | None = None) -> Heartbeat:
    return Heartbeat(list(passes), 0, 0, steps_done or {})


def timed(seconds: float) -> Finished:
    return Finished("", b"image", replace(METADATA, seconds=StageTimes(passes=seconds, prompt_encoder=seconds)))


def finished(key: str) -> Finished:
    return Finished(key, b"image", METADATA)


# each ends the worker: no valid worker sends it
BROKEN: dict[str, Garbage] = {
    "random bytes": lambda _: LENGTH.pack(4096) + os.urandom(4096),
    "a message of 4 GB": lambda _: b"\xff" * 4 + bytes(64 << 20),
    "half a message": lambda _: LENGTH.pack(100) + b"x",
    "an empty message": lambda _: LENGTH.pack(0),
    "a number": lambda _: framed(7),
    "an unknown type": lambda _: framed({"type": "Nonsense"}),
    "a missing field": lambda _: framed({"type": "Started"}),
    "text that is not UTF-8": lambda _: LENGTH.pack(20) + b"\x82\xa4type\xa7Started\xa3key\xa1\xff",
    "deep nesting": lambda _: LENGTH.pack(100_000) + b"\x91" * 100_000,
    "a negative duration": lambda _: frames(heartbeat((1, -1.0))),
    "a duration of NaN": lambda _: frames(heartbeat((1, math.nan))),
    "an infinite duration": lambda _: frames(heartbeat((1, math.inf))),
    "a batch of -1": lambda _: frames(heartbeat((-1, 1.0))),
    "a count of -1": lambda _: frames(Heartbeat([], -1, -1, {})),
    "an image that took NaN": lambda job: frames(replace_key(timed(math.nan), f"{job}:0")),
    "an image that took -1 s": lambda job: frames(replace_key(timed(-1.0), f"{job}:0")),
    "an image of no passes": lambda job: frames(Finished(f"{job}:0", b"", replace(METADATA, forwards=0))),
    "an index that is no number": lambda job: frames(finished(f"{job}:x")),
    "an index of 7": lambda job: frames(finished(f"{job}:7")),
    "an index of -1": lambda job: frames(finished(f"{job}:-1")),
    "an index of 10**5000": lambda job: frames(finished(f"{job}:1{'0' * 5000}")),
    "a million steps": lambda job: frames(heartbeat(steps_done={f"{job}:0": 10**6})),
    "a window of 0": lambda _: frames(Batching("measured", 0)),
    "a speed-up of NaN": lambda _: frames(Batching("measured", sizes=(MeasuredSize(64, 64, 2, math.nan),))),
    "a measurement in no known state": lambda _: framed({"type": "Batching", "state": "odd"}),
    "steps below 0": lambda job: frames(heartbeat(steps_done={f"{job}:0": -1})),
}


# each is ignored: a worker may send it about a job that has ended meanwhile
HARMLESS: dict[str, Garbage] = {
    "unknown jobs": lambda _: frames(
        Started("none:0"), PreviewReady("none:0", 1, b""), finished("none:0"), Failed("none:0", "", ""), finished("")
    ),
    "one image twice": lambda job: frames(finished(f"{job}:0"), finished(f"{job}:0")),
    "a preview of a finished image": lambda job: frames(finished(f"{job}:0"), PreviewReady(f"{job}:0", 1, b"")),
    "starts twice": lambda job: frames(*[Started(f"{job}:0")] * 1000),
}


def replace_key(message: Finished, key: str) -> Finished:
    return msgspec.structs.replace(message, key=key)


class GarbageSupervisor(Supervisor):
    """Supervisor of workers in threads, which begin a job and then write garbage."""

    def __init__(self, kind: str, listener: WorkerListener) -> None:
        super().__init__([], listener, WorkerTimeouts(load=20, backoff=0.0))
        self._garbage = (BROKEN | HARMLESS)[kind]

    async def _launch(self, theirs: socket.socket) -> "GarbageWorker":
        return GarbageWorker(self._garbage, theirs.dup())


class GarbageWorker(threading.Thread):
    """A worker in a thread, with the interface of a process."""

    pid, returncode = 0, None

    def __init__(self, garbage: Garbage, sock: socket.socket) -> None:
        super().__init__()
        self._garbage, self._sock = garbage, sock
        self.start()

    def run(self) -> None:
        with self._sock, self._sock.makefile("rb") as stream, suppress(OSError):
            self._sock.sendall(encode_frame(Ready(0.0)))
            while header := stream.read(LENGTH.size):
                message = decode_to_worker(stream.read(*LENGTH.unpack(header)))
                if isinstance(message, Stop):
                    return
                if isinstance(message, Generate):
                    self._sock.sendall(frames(Started(f"{message.job}:0")) + self._garbage(message.job))
                    return

    async def wait(self) -> int:
        await asyncio.to_thread(self.join)
        return 0

    def kill(self) -> None:
        """Do nothing: the thread ends when the server closes its end."""
