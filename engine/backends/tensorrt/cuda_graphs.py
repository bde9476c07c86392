"""CUDA graphs: the launches of a whole forward pass as one. Kept where they gain, measured on the device itself."""

import logging
from collections.abc import Callable

from engine.backends.cuda import Cuda
from engine.errors import DeviceError
from engine.options import CudaGraphs

log = logging.getLogger(__name__)

Enqueue = Callable[[], None]

# Of a pass with the same shapes and addresses, which an image has four of: what does not come again is not captured.
CAPTURED = 5
DECIDED = CAPTURED + 2  # from then on nothing is tried any more
GAIN = 0.98  # a replay that takes more than this share of an ordinary pass is not worth its memory


class Replay:
    """The graph of one execution context, as long as its shapes and addresses stay.

    The first pass is an ordinary one, since TensorRT does work there that cannot be captured.

    Args:
        mode: "on" captures the second pass. "auto" times it, captures the fifth, times the sixth, and keeps the graph
            if it gains.
    """

    def __init__(self, cuda: Cuda, mode: CudaGraphs, stream: int) -> None:
        self._cuda, self._mode, self._stream = cuda, mode, stream
        self._passes = 0  # that were enqueued
        self._graph: int | None = None
        self._timed: list[tuple[int, int]] = []  # events around the ordinary pass and the replay

    def run(self, enqueue: Enqueue) -> None:
        """Enqueues the pass, as it is or from its graph."""
        if self._mode == "off":
            enqueue()
            return
        if self._mode == "on":
            self._run_on(enqueue)
        else:
            self._run_auto(enqueue)
        self._passes += 1

    def clear(self) -> None:
        """Forgets the graph: before other bindings, and after a change of weights."""
        self._passes = 0
        self._drop_graph()
        self._drop_times()

    def _run_on(self, enqueue: Enqueue) -> None:
        if self._passes and self._graph is None:
            self._graph = self._capture(enqueue)
        self._launch(enqueue)

    def _run_auto(self, enqueue: Enqueue) -> None:
        number = self._passes + 1
        if number == 2 or (number == CAPTURED + 1 and self._graph is not None):
            self._time(lambda: self._launch(enqueue))
            return
        if number == CAPTURED:
            self._graph = self._try_capture(enqueue)
        elif number == DECIDED:
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
            log.warning("runs without a CUDA graph, which cannot be captured: %s", error)
            self._drop_times()
            return None

    def _capture(self, enqueue: Enqueue) -> int:
        self._cuda.begin_capture(self._stream)
        try:
            enqueue()
        except BaseException:
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
        """Both passes are over by now: the host is not that far ahead."""
        if len(self._timed) == 2:
            for _, end in self._timed:
                self._cuda.wait(end)
            ordinary, replay = (self._cuda.seconds(*pair) for pair in self._timed)
            log.debug("a pass takes %.2f ms, from its CUDA graph %.2f ms", ordinary * 1e3, replay * 1e3)
            if replay > GAIN * ordinary:
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
