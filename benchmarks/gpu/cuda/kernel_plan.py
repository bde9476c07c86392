"""`engine.backends.tensorrt.plan.Plan` over the kernels of `kernel_source`: what the runtime drives without TensorRT.

Like a real plan it keeps weights on the device, computes in the arena that it is given, and launches several kernels
for a pass. It does not know how kernels are compiled and launched.
"""

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.gpu.cuda.kernel_graphs import TINT, base_tint
from benchmarks.gpu.cuda.kernel_source import SUMS
from engine.array import Array
from engine.backends.base import Backend
from engine.backends.cuda import Cuda
from engine.backends.memory import ALIGNMENT
from engine.backends.tensorrt.load import load_plans
from engine.errors import DeviceError
from engine.options import RuntimeOptions
from engine.plan.manifest import Graph, GraphName, Manifest

Argument = int | ctypes.c_void_p  # an int is a C int, a c_void_p an address

SPIN = 200_000  # clock cycles before each pass, about 0.1 ms: the host gets ahead, as with a real model


class Launcher(Protocol):
    """Kernels of `kernel_source` on a device."""

    def launch(self, kernel: str, count: int, arguments: tuple[Argument, ...], stream: int) -> None:
        """Enqueue a kernel whose first argument is `count`, the number of elements that it computes."""
        ...


@dataclass
class KernelDevice:
    """A device that runs the kernels.

    Attributes:
        spoil_capture: makes a call that a running capture forbids.
        lose_context: enqueues work that loses the CUDA context.
        plans: every plan that was opened, in order.
    """

    cuda: Cuda
    launcher: Launcher
    spoil_capture: Callable[[int], None]
    lose_context: Callable[[int], None]
    plans: "list[KernelPlan]" = field(default_factory=list)

    def load(self, folder: Path, manifest: Manifest, options: RuntimeOptions) -> Backend:
        """Load the graphs as `engine.backends.load` loads TensorRT plans."""

        def open_plan(name: GraphName) -> KernelPlan:
            plan = KernelPlan(self, name, manifest.graphs[name], folder)
            self.plans.append(plan)
            return plan

        return load_plans(self.cuda, open_plan, folder, manifest, options)


class KernelPlan:
    """One graph on the device."""

    def __init__(self, device: KernelDevice, name: GraphName, graph: Graph, folder: Path) -> None:
        self._cuda, self.launcher = device.cuda, device.launcher
        self.name, self.graph = name, graph
        self.contexts = Counter[int]()  # by profile
        self._bytes = math.prod(TINT.shape) * 4
        self.weights = self._cuda.allocate(max(self._bytes, ALIGNMENT))
        self.sink = self._cuda.allocate(ALIGNMENT)
        self._staging = self._cuda.allocate_host(self._bytes)
        self._closed = False
        if graph.refittable:
            stream = self._cuda.create_stream()
            for _ in self.refit([(TINT.name, base_tint(folder, graph))], stream):
                pass
            self._cuda.destroy_stream(stream)

    def activation_bytes(self, profile: int) -> int:
        return self.graph.activation_bytes[profile]

    def create_context(
        self, profile: int, arena: tuple[int, int], stream: int, *, specialized: bool
    ) -> "KernelContext":
        del specialized  # these kernels are the same for every shape
        if arena[1] < self.activation_bytes(profile):
            raise DeviceError(f"the arena has {arena[1]} bytes, a context needs {self.activation_bytes(profile)}")
        self.contexts[profile] += 1
        return KernelContext(self, arena[0], stream)

    def refit(self, weights: Iterable[tuple[str, Array]], stream: int) -> Iterator[None]:
        for name, values in weights:
            if name != TINT.name or values.shape != TINT.shape or values.dtype != np.float32:
                raise DeviceError(f"the plan has no weights {name} of {values.shape}, {values.dtype}")
            ctypes.memmove(self._staging, values.ctypes.data, self._bytes)
            self._cuda.copy(self.weights, self._staging, self._bytes, stream)
            self._cuda.synchronize(stream)  # the staging buffer is used again
            yield

    def save_kernels(self) -> None:
        """Write nothing: all kernels were compiled before the plan was opened."""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for address in (self.weights, self.sink):
            self._cuda.free(address)
        self._cuda.free_host(self._staging)


class KernelContext:
    """A graph with shapes and addresses."""

    def __init__(self, plan: KernelPlan, scratch: int, stream: int) -> None:
        self._plan, self._scratch, self._stream = plan, ctypes.c_void_p(scratch), stream
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, ctypes.c_void_p] = {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        if address % ALIGNMENT:
            raise DeviceError(f"{name} is at {address:#x}, which is not a multiple of {ALIGNMENT}")
        self._addresses[name] = ctypes.c_void_p(address)

    def enqueue(self, stream: int) -> None:
        if stream != self._stream:
            raise DeviceError("a context was enqueued on another stream than its own")
        launch: Callable[..., None] = self._plan.launcher.launch
        launch("spin", 1, (SPIN, ctypes.c_void_p(self._plan.sink)), stream)
        passes: dict[GraphName, Callable[[Any], None]] = {
            "prompt_encoder": self._encode,
            "denoiser": self._denoise,
            "guidance": self._guide,
            "vae_decoder": self._decode,
        }
        passes[self._plan.name](lambda kernel, count, *arguments: launch(kernel, count, arguments, stream))

    def _encode(self, launch: Any) -> None:
        at, (batch, length) = self._addresses, self._shapes["input_ids"]
        dim = self._plan.graph.outputs[0].shape[2]
        assert isinstance(dim, int)
        count = batch * length * dim
        launch("encode", count, length, dim, at["input_ids"], at["lengths"], self._scratch)
        launch("move", count, self._scratch, at["prompt_embeds"])

    def _denoise(self, launch: Any) -> None:
        at, shapes = self._addresses, self._shapes
        batch, channels, height, width = shapes["latents"]
        sample = channels * height * width
        sizes = (sample, height * width, math.prod(shapes["prompt_embeds"][1:]), math.prod(shapes["rope_cos"]))
        inputs = (at["latents"], at["prompt_embeds"], at["rope_cos"], at["rope_sin"])
        launch("velocity", batch * sample, *sizes, *inputs, ctypes.c_void_p(self._plan.weights), self._scratch)
        levels = (at["sigma"], at["sigma_next"])
        launch("euler", batch * sample, sample, at["latents"], *levels, self._scratch, at["latents_next"])

    def _guide(self, launch: Any) -> None:
        at, shape = self._addresses, self._shapes["latents_positive"]
        names = ("latents_positive", "latents_negative", "latents_before", "guidance_scale", "cfg_normalization")
        launch("guide", math.prod(shape), math.prod(shape[1:]), *(at[name] for name in names), self._scratch)
        launch("move", math.prod(shape), self._scratch, at["latents_guided"])

    def _decode(self, launch: Any) -> None:
        at, (_, _, height, width) = self._addresses, self._shapes["latents"]
        values, numbers = 3 * height * width, 3 * 64 * height * width
        sums = ctypes.c_void_p((self._scratch.value or 0) + 4 * numbers)
        launch("decode", numbers, height, width, at["latents"], self._scratch)
        launch("quantize", numbers, self._scratch, at["image"])
        launch("sum", SUMS, values, at["latents"], sums)
        launch("mean", 1, SUMS, values, sums, at["image_mean"])
