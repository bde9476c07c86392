"""CUDA graphs: all launches of a forward pass as one. A graph is kept if it measurably gains on the device."""

import logging
from collections.abc import Callable
from contextlib import suppress

from engine.backends.cuda import Cuda
from engine.errors import DeviceError
from engine.options import CudaGraphs

log = logging.getLogger(__name__)

Enqueue = Callable[[], None]

# The pass with the same bindings that is captured. A single image of 8 steps captures nothing; bindings that are
# prepared at the start will be used again.
CAPTURED = 9
PINNED_CAPTURED = 3
DECIDED_AFTER = 2  # passes from the captured one to the one from which on the decision is final
MAX_REPLAY_RATIO = 0.98  # a replay must take at most this share of an ordinary pass to be worth its memory


class Replay:
    """The CUDA graph of one execution context, valid while its shapes and addresses stay the same.

    The first pass always runs without a graph, since TensorRT does work in it that cannot be captured.

    Args:
        mode: "on" captures the second pass. "auto" times the second pass, captures the pass numbered `captured`, times
            the one after it, and keeps the graph if it gains. "off" captures nothing.
    """

    def __init__(self, cuda: Cuda, mode: CudaGraphs, stream: int, captured: int = CAPTURED) -> None:
        self._cuda, self._mode, self._stream, self._captured = cuda, mode, stream, captured
        self._passes = 0
        self._graph: int | None = None
        self._timed: list[tuple[int, int]] = []  # events around the ordinary pass and the replay

    def run(self, enqueue: Enqueue) -> None:
        """Enqueue the pass, directly or from its graph."""
        if self._mode == "off":
            enqueue()
            return
        if self._mode == "on":
            self._run_on(enqueue)
        else:
            self._run_auto(enqueue)
        self._passes += 1

    def clear(self) -> None:
        """Drop the graph: for other bindings, or after a change of weights."""
        self._passes = 0
        self._drop_graph()
        self._drop_times()

    def _run_on(self, enqueue: Enqueue) -> None:
        if self._passes and self._graph is None:
            self._graph = self._capture(enqueue)
        self._launch(enqueue)

    def _run_auto(self, enqueue: Enqueue) -> None:
        number = self._passes + 1
        if number == 2 or (number == self._captured + 1 and self._graph is not None):
            self._time(lambda: self._launch(enqueue))
            return
        if number == self._captured:
            self._graph = self._try_capture(enqueue)
        elif number == self._captured + DECIDED_AFTER:
            self._decide()
        self._launch(enqueue)

    def _launch(self, enqueue: Enqueue) -> None:
        if self._graph is None:
            enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)

    def _try_capture(self, enqueue: Enqueue) -> int | None:
        try:
            return self._capture(enqueue)
        except DeviceError as error:
            if error.sticky:
                raise
            log.warning("running without a CUDA graph, since capture failed: %s", error)
            self._drop_times()
            return None

    def _capture(self, enqueue: Enqueue) -> int:
        self._cuda.begin_capture(self._stream)
        try:
            enqueue()
        except BaseException:
            with suppress(DeviceError):  # the first error tells more
                self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
            raise
        return self._cuda.end_capture(self._stream)

    def _time(self, work: Enqueue) -> None:
        start, end = self._cuda.create_event(), self._cuda.create_event()
        self._timed.append((start, end))
        self._cuda.record(start, self._stream)
        work()
        self._cuda.record(end, self._stream)

    def _decide(self) -> None:
        """Keep the graph if its replay was faster. The timed passes are over: the host is not that far ahead."""
        if len(self._timed) == 2:
            for _, end in self._timed:
                self._cuda.wait(end)
            ordinary, replay = (self._cuda.seconds(*pair) for pair in self._timed)
            log.debug("a pass takes %.2f ms, and %.2f ms from its CUDA graph", ordinary * 1e3, replay * 1e3)
            if replay > MAX_REPLAY_RATIO * ordinary:
                self._drop_graph()
        self._drop_times()

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.synchronize(self._stream)  # it may be running
            self._cuda.destroy_graph(self._graph)
            self._graph = None

    def _drop_times(self) -> None:
        for event in (event for pair in self._timed for event in pair):
            self._cuda.destroy_event(event)
        self._timed.clear()
