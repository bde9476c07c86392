"""Building of TensorRT plans from ONNX files, with `tensorrt` or `tensorrt_rtx`.

The two packages share one API. `hasattr` and `getattr` detect the parts that only one of them has. This is the only
module of `export` that imports either.
"""

import importlib
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import ModuleType
from typing import Any

from engine.backends.load import INSTALL, NOT_RTX, PACKAGES
from engine.errors import BackendUnavailable, BuildError
from engine.plan.manifest import Flavor, Graph, Range
from export.progress import BuildProgress, Phase

Shapes = Mapping[str, Range]  # dynamic dimension -> its bounds

# In TensorRT's log: activations for each profile in turn, weights once.
STATED = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")


class TensorRtBuilder:
    """Builds plans with one flavor of TensorRT for a fixed set of GPUs.

    Attributes:
        stored_bytes: bytes of weights in the plan that was built last, from TensorRT's log; None if it has none.
    """

    def __init__(self, flavor: Flavor, compute_capabilities: Sequence[str], progress: BuildProgress) -> None:
        self._trt = import_tensorrt(flavor)
        # tensorrt builds for the GPU of this machine, and has no names for others
        self._capabilities = [self._capability(text) for text in compute_capabilities] if flavor == "rtx" else []
        self._progress = progress
        self.name = f"{PACKAGES[flavor]} {self._trt.__version__}"
        self.stored_bytes: int | None = None

    def build(self, path: Path, graph: Graph, profiles: Sequence[Shapes], plan: Path) -> tuple[int, ...]:
        """Build one graph and write it to `plan`.

        Args:
            path: ONNX file.
            graph: manifest entry of the graph, with the named dimensions of its tensors.
            profiles: range of each named dimension, per profile.
            plan: file to write.

        Returns:
            Bytes of activations that an execution context of each profile needs, from TensorRT's log; none if the log
            has not one figure for each profile.

        Raises:
            BackendUnavailable: TensorRT does not start.
            BuildError: TensorRT rejects the graph or a profile; the message includes TensorRT's.
        """
        trt = self._trt
        logger = _make_logger(trt)
        builder = _start(trt, logger)
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise BuildError(f"TensorRT cannot parse {path.name}: {errors}")
        config = self._config(builder, graph, profiles)
        if graph.refittable:
            config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        for weight in graph.refittable:
            if not network.mark_weights_refittable(weight.name):
                raise BuildError(f"TensorRT cannot make the weights {weight.name} in {path.name} refittable")
        with _recorded_interrupt() as interrupted:
            config.progress_monitor = _make_monitor(trt, self._progress, interrupted)
            serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise BuildError(f"TensorRT cannot build {path.name}: {logger.reasons()}")
        plan.write_bytes(serialized)
        self.stored_bytes = next(iter(logger.stated["Weights"]), None)
        activations = logger.stated["Activation"]
        return tuple(activations) if len(activations) == len(profiles) else ()

    def _config(self, builder: Any, graph: Graph, profiles: Sequence[Shapes]) -> Any:
        config = builder.create_builder_config()
        # TF32 is on by default. Products that are FP32 in a graph need all of FP32: those of --fp32, and in the other
        # precisions the embedders, the modulation and the final layer, which are a ten-thousandth of the work.
        config.clear_flag(self._trt.BuilderFlag.TF32)
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED  # a plan can be asked for its kernels
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            try:
                for spec in graph.inputs:
                    bounds = [_resolve(spec.shape, shapes, which) for which in ("min", "opt", "max")]
                    profile.set_shape(spec.name, *bounds)
            except RuntimeError as error:  # not ValueError, as documented
                raise BuildError(f"TensorRT refuses the profile {dict(shapes)}: {error}") from error
            if config.add_optimization_profile(profile) < 0:
                raise BuildError(f"TensorRT refuses the profile {dict(shapes)}")
        if self._capabilities:
            config.num_compute_capabilities = len(self._capabilities)
            for index, capability in enumerate(self._capabilities):
                if not config.set_compute_capability(capability, index):
                    raise BuildError(f"TensorRT refuses to build for {capability}")
        return config

    def _capability(self, text: str) -> Any:
        name = f"SM{text.replace('.', '')}"
        known = self._trt.ComputeCapability
        if not re.fullmatch(r"\d+\.\d", text) or not hasattr(known, name):  # the manifest keeps `text`
            raise BuildError(f"{self._trt.__name__} has no compute capability {text!r}. {NOT_RTX}")
        return getattr(known, name)


def import_tensorrt(flavor: Flavor) -> ModuleType:
    """Import the package of a flavor.

    Raises:
        BackendUnavailable: the package does not import, or is a stub; the message says what to install.
    """
    package = PACKAGES[flavor]
    try:
        module = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"--flavor {flavor} needs the package {package}, which cannot be imported ({error}); "
            f"install it with: pip install {INSTALL[flavor]}"
        ) from error
    if not hasattr(module, "Builder"):
        raise BackendUnavailable(
            f"the installed {package} is a stub without libraries; install it from NVIDIA's package index"
        )
    return module


def _start(trt: ModuleType, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # its binding's answer to a null pointer
        reasons = logger.reasons()
        raise BackendUnavailable(f"{trt.__name__} does not start: {reasons}; it may need a newer driver") from error


def _strongly_typed(trt: ModuleType) -> int:
    """Return the network flags for strong typing, which needs no flag from TensorRT 11 on."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _resolve(shape: Sequence[int | str], shapes: Shapes, which: str) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else getattr(shapes[d], which) for d in shape)


def _make_logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Collects errors for exceptions, and sizes of memory, which no API gives without a GPU.

        TensorRT states the sizes in messages of severity INFO, which `trt.Logger` can only print. A logger in Python
        takes the interpreter's lock for each message. That cannot deadlock here: the build releases the lock, and its
        threads end with it.
        """

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self.stated: dict[str, list[int]] = {"Activation": [], "Weights": []}

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(message)
            elif match := STATED.match(message):
                self.stated[match[1]].append(int(match[2]))

        def reasons(self) -> str:
            """Return the errors, as TensorRT words them."""
            return "; ".join(self._errors) or "it gives no reason"

    return Logger()


@contextmanager
def _recorded_interrupt() -> Iterator[Callable[[], bool]]:
    """Record Ctrl-C and raise KeyboardInterrupt at the end, since TensorRT ignores exceptions of its callbacks."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield lambda: False
        return
    interrupted = Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


def _make_monitor(trt: ModuleType, progress: BuildProgress, interrupted: Callable[[], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Shows TensorRT's build phases as bars."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._open: dict[str, Phase] = {}

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self._open[phase_name] = progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, _step: int) -> bool:
            self._open[phase_name].advance()
            return not interrupted()  # False cancels the build

        def phase_finish(self, phase_name: str) -> None:
            self._open.pop(phase_name).finish()

    return Monitor()
