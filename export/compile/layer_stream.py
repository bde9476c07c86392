"""Models whose layers are in memory one at a time, and forward passes that go through them in step.

A forward pass runs in a thread of its own. At each layer, all wait until the last one has arrived; then the layer's
weights are read and those of the layer before are dropped. So the weights are read once for any number of passes, and
the model's own code runs unchanged. Knows modules and weights; not models.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import BrokenBarrierError
from typing import Any, TypeVar

import torch
from torch import nn

from export.checkpoint.models import META, Model
from export.checkpoint.stored_weights import close_files

T = TypeVar("T")


class LayerStream:
    """Forward passes over models, of whose layers one at a time is in memory."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._computing = threading.Lock()  # one pass at a time computes, with all cores
        self._barrier = threading.Barrier(1)
        self._wanted: _Layer | None = None
        self._loaded: _Layer | None = None

    def add(self, model: Model, without: Collection[str] = (), *, whole: bool = False) -> Any:
        """Return the model's module, with the weights outside of its lists of layers loaded in FP32.

        The elements of the outermost `nn.ModuleList`s are its layers. They are loaded when a pass reaches them.

        Args:
            without: parameters that no pass uses; they stay on the meta device.
            whole: load all weights now. Passes then run one after the other: right where activations are larger
                than weights, since passes that wait for each other hold theirs.
        """
        layers = {} if whole else dict(_layers(model.module))
        inside = {f"{name}.{key}" for name, layer in layers.items() for key in layer.state_dict()}
        outside = {name: self._load(model, name) for name in model.weights.keys() - inside - set(without)}
        model.module.load_state_dict(outside, strict=False, assign=True)
        for name, layer in layers.items():
            layer.register_forward_pre_hook(self._hook(_Layer(model, name, layer)))
        return model.module

    def run(self, passes: Sequence[Callable[[], T]]) -> list[T]:
        """Run forward passes that go through the same layers in the same order; return their results."""
        self._barrier = threading.Barrier(len(passes), self._exchange)
        try:
            with ThreadPoolExecutor(len(passes)) as threads:
                try:
                    return _results([threads.submit(self._run, one) for one in passes])
                except BaseException:
                    self._barrier.abort()  # ends the other threads
                    raise
        finally:
            self._unload()

    def _run(self, one: Callable[[], T]) -> T:
        try:
            with self._computing, torch.no_grad():
                return one()
        except BaseException:
            self._barrier.abort()
            raise

    def _hook(self, layer: "_Layer") -> Callable[[Any, Any], None]:
        def wait(_module: Any, _inputs: Any) -> None:
            self._wanted = layer
            self._computing.release()
            try:
                self._barrier.wait()
            finally:
                self._computing.acquire()

        return wait

    def _exchange(self) -> None:
        """Drop the layer in memory and load the one that every pass waits for."""
        self._unload()
        layer = self._wanted
        assert layer is not None
        state = {key: self._load(layer.model, f"{layer.name}.{key}") for key in layer.module.state_dict()}
        layer.module.load_state_dict(state, assign=True)
        self._loaded = layer

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded.module.to(META)
            self._loaded = None
            close_files()

    def _load(self, model: Model, name: str) -> torch.Tensor:
        return model.weights[name].load().float().to(self._device)


class _Layer:
    """A layer and the place of its weights."""

    def __init__(self, model: Model, name: str, module: Any) -> None:
        self.model, self.name, self.module = model, name, module


def _layers(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{prefix}{name}.{index}", layer) for index, layer in enumerate(child))
        else:
            yield from _layers(child, f"{prefix}{name}.")


def _results(futures: Sequence[Any]) -> list[Any]:
    """Return the results, or raise the first error that is no consequence of another."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
