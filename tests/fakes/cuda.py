"""A fake CUDA device: real bytes, and streams that run as late and in as mixed an order as CUDA allows.

Enqueued work runs when something waits for it, in a random order of streams. Code that relies on an order that no
stream and no event gives therefore sees wrong bytes sooner or later. Wrong use raises `Misuse` at the call.
"""

import ctypes
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from engine.backends.cuda import failure

POISON = 0xA5
PASS_SECONDS, REPLAY_SECONDS = 2e-3, 1e-3


class Misuse(AssertionError):
    """Use that a real device would answer with an error or, worse, with wrong pixels."""


@dataclass
class Block:
    array: np.ndarray
    on_device: bool
    address: int

    @property
    def end(self) -> int:
        return self.address + self.array.nbytes


@dataclass
class Work:
    """One entry of a stream, and the recording that it waits for."""

    run: Callable[[], None]
    seconds: float = 0.0
    after: "Ticket | None" = None


@dataclass
class Ticket:
    """One recording of an event."""

    done: bool = False
    at: float = 0.0


@dataclass
class Captured:
    work: list[Work]
    valid: list[Callable[[], None]]  # each raises Misuse if the graph must not be launched
    running: int = 0


@dataclass
class FakeCuda:
    """`engine.backends.cuda.Cuda` with `memory` bytes."""

    memory: int = 8 << 30
    seed: int = 0
    eagerness: float = 0.3  # probability that an entry runs before anything waits for it
    calls: Counter[str] = field(default_factory=Counter)
    replay_seconds: float = REPLAY_SECONDS
    fails: dict[str, str] = field(default_factory=dict)  # function -> CUDA's error from now on
    uncapturable: bool = False

    def __post_init__(self) -> None:
        self._chance, self._handles = random.Random(self.seed), count(1000)
        self.blocks: dict[int, Block] = {}
        self._streams: dict[int, deque[Work]] = {}
        self._clock: dict[int, float] = {}
        self._events: dict[int, Ticket | None] = {}
        self._graphs: dict[int, Captured] = {}
        self._capturing: tuple[int, Captured] | None = None
        self._capturing_thread = 0

    # memory

    def memory_info(self) -> tuple[int, int]:
        return self.memory - sum(block.array.nbytes for block in self.blocks.values() if block.on_device), self.memory

    def allocate(self, size: int) -> int:
        self._begin("allocate")
        if size > self.memory_info()[0]:
            raise failure("cudaMalloc", "cudaErrorMemoryAllocation", (size,))
        return self._block(size, on_device=True)

    def allocate_host(self, size: int) -> int:
        self._begin("allocate_host")
        return self._block(size, on_device=False)

    def free(self, address: int) -> None:
        self._begin("free")
        if not self.blocks.pop(address, Block(np.empty(0), False, 0)).on_device:
            raise Misuse(f"free of {address:#x}, which is no allocation on the device")

    def free_host(self, address: int) -> None:
        self._begin("free_host")
        if self.blocks.pop(address, Block(np.empty(0), True, 0)).on_device:
            raise Misuse(f"free of {address:#x}, which is no page-locked memory")

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        self._begin("copy", waits=False)
        for address in (destination, source):
            self.bytes_at(address, size)
        self.enqueue(stream, lambda: ctypes.memmove(*self._alive(destination, source, size)))

    def bytes_at(self, address: int, size: int, *, device: bool | None = None) -> np.ndarray:
        """Return a window of memory. Raises Misuse if it is not inside one live allocation."""
        for block in self.blocks.values():
            if block.address <= address and address + size <= block.end and device in (None, block.on_device):
                start = address - block.address
                return block.array[start : start + size]
        raise Misuse(f"{size} bytes at {address:#x} are outside every allocation")

    # streams and events

    def create_stream(self) -> int:
        self._begin("create_stream")
        stream = next(self._handles)
        self._streams[stream], self._clock[stream] = deque(), 0.0
        return stream

    def destroy_stream(self, stream: int) -> None:
        self._begin("destroy_stream")
        if self._stream(stream):
            raise Misuse("a stream is destroyed while work is on it")
        del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        self._begin("synchronize")
        self._run_until(lambda: not self._stream(stream))

    def create_event(self) -> int:
        self._begin("create_event")
        event = next(self._handles)
        self._events[event] = None
        return event

    def destroy_event(self, event: int) -> None:
        self._begin("destroy_event")
        self._ticket(event, recorded=False)
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        self._begin("record", waits=False)
        self._ticket(event, recorded=False)
        if self._capturing:
            raise Misuse("an event is recorded into a graph: it never happens outside it")
        ticket = self._events[event] = Ticket()

        def done() -> None:
            ticket.done, ticket.at = True, self._clock[stream]

        self.enqueue(stream, done)

    def wait(self, event: int) -> None:
        self._begin("wait")
        ticket = self._ticket(event)
        self._run_until(lambda: ticket.done)

    def make_wait(self, stream: int, event: int) -> None:
        self._begin("make_wait", waits=False)
        self.enqueue(stream, lambda: None, after=self._ticket(event))

    def seconds(self, start: int, end: int) -> float:
        tickets = [self._ticket(event) for event in (start, end)]
        if not all(ticket.done for ticket in tickets):
            raise Misuse("the time between events that are not done")
        return tickets[1].at - tickets[0].at

    # graphs

    def begin_capture(self, stream: int) -> None:
        self._begin("begin_capture")
        self._stream(stream)
        self._capturing = (stream, Captured([], []))
        self._capturing_thread = threading.get_ident()

    def end_capture(self, stream: int) -> int:
        assert self._capturing is not None and self._capturing[0] == stream
        _, captured = self._capturing
        self._capturing = None
        self._begin("end_capture")
        if self.uncapturable:
            raise failure("cudaStreamEndCapture", "cudaErrorStreamCaptureInvalidated")
        graph = next(self._handles)
        self._graphs[graph] = captured
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self._begin("launch", waits=False)
        if graph not in self._graphs:
            raise Misuse("a graph is launched that does not exist")
        captured = self._graphs[graph]
        for check in captured.valid:
            check()
        captured.running += 1
        for work in captured.work:
            self.enqueue(stream, work.run, seconds=self.replay_seconds)

        def done() -> None:
            captured.running -= 1

        self.enqueue(stream, done)

    def destroy_graph(self, graph: int) -> None:
        self._begin("destroy_graph")
        if graph not in self._graphs or self._graphs.pop(graph).running:
            raise Misuse("a graph is destroyed that does not exist, or is running")

    def require_context(self) -> None:
        self._begin("require_context", waits=False)

    # for fakes of what runs on the device, and for tests

    def enqueue(
        self,
        stream: int,
        run: Callable[[], None],
        *,
        seconds: float = 0.0,
        after: Ticket | None = None,
        valid: Callable[[], None] | None = None,
    ) -> None:
        """Put work on a stream, or into the graph that is captured from it."""
        queue = self._stream(stream)
        if self._capturing and self._capturing[0] == stream:
            if after is not None:
                raise Misuse("a graph waits for an event outside it")
            captured = self._capturing[1]
            captured.work.append(Work(run, seconds))
            captured.valid += [valid] if valid else []
            return
        queue.append(Work(run, seconds, after))
        while self._chance.random() < self.eagerness and self._advance():
            pass

    @property
    def leaks(self) -> dict[str, int]:
        """Live resources by kind; empty after everything was closed."""
        kinds = {"blocks": self.blocks, "streams": self._streams, "events": self._events, "graphs": self._graphs}
        return {kind: len(found) for kind, found in kinds.items() if found}

    @property
    def resources(self) -> Counter[str]:
        """Calls so far that take memory."""
        taking = ("allocate", "allocate_host", "create_stream", "create_event", "begin_capture")
        return Counter({name: self.calls[name] for name in taking})

    def _begin(self, function: str, *, waits: bool = True) -> None:
        self.calls[function] += 1
        if function in self.fails:
            raise failure(function, self.fails[function])
        if waits and self._capturing and self._capturing_thread == threading.get_ident():  # others may, in its mode
            raise Misuse(f"{function} while a graph is captured")

    def _block(self, size: int, *, on_device: bool) -> int:
        raw = np.full(size + 256, POISON, np.uint8)
        array = raw[-raw.ctypes.data % 256 :][:size]
        self.blocks[array.ctypes.data] = Block(array, on_device, array.ctypes.data)
        return array.ctypes.data

    def _alive(self, destination: int, source: int, size: int) -> tuple[int, int, int]:
        for address in (destination, source):
            self.bytes_at(address, size)  # not freed since it was enqueued
        return destination, source, size

    def _stream(self, stream: int) -> deque[Work]:
        if stream not in self._streams:
            raise Misuse(f"stream {stream} does not exist")
        return self._streams[stream]

    def _ticket(self, event: int, *, recorded: bool = True) -> Ticket:
        if event not in self._events or (recorded and self._events[event] is None):
            raise Misuse(f"event {event} does not exist, or was never recorded")
        return self._events[event] or Ticket()

    def _advance(self) -> bool:
        ready = [s for s, queue in self._streams.items() if queue and (queue[0].after is None or queue[0].after.done)]
        if not ready:
            return False
        stream = self._chance.choice(ready)
        work = self._streams[stream].popleft()
        self._clock[stream] += work.seconds
        work.run()
        return True

    def _run_until(self, over: Callable[[], bool]) -> None:
        while not over():
            if not self._advance():
                raise Misuse("waits for an event that never happens")
