"""A graph on ONNX Runtime on the CPU: the default without a GPU, and the reference in tests."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from engine.backends.base import Bindings, Engine, check_bindings
from engine.errors import DeviceError, OutOfDeviceMemory, PlanCorrupt
from engine.plan.lora import PreparedLora
from engine.plan.manifest import Graph

BINDINGS_KEPT = 64  # sets of arrays: one per shape


class OnnxRuntimeEngine(Engine):
    """Reads and writes the caller's arrays in place. A set of arrays is bound once, not on every call."""

    def __init__(self, path: Path, graph: Graph, threads: int = 0) -> None:
        self._path, self._graph, self._threads = path, graph, threads
        self._weights: dict[str, Any] = {}
        self._session: Any = self._open({})
        self._binding_at = lru_cache(maxsize=BINDINGS_KEPT)(self._bind)

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == 0, "a CPU has no streams"
        check_bindings(self._graph, bindings)
        addresses = tuple((name, array.ctypes.data, array.shape) for name, array in bindings.items())
        binding = self._binding_at(addresses)
        try:
            self._session.run_with_iobinding(binding)
        except RuntimeError as error:
            raise _failure(self._path, str(error)) from error

    def refit(self, lora: PreparedLora | None) -> Iterator[None]:
        """Open a new session over the same file, since ONNX Runtime cannot change weights in place."""
        changed = {}
        for name, array in lora.weights(self._graph, self._path.parent) if lora else ():
            changed[name] = ort.OrtValue.ortvalue_from_numpy(array)
            yield
        if changed or self._weights or self._session is None:
            self._binding_at.cache_clear()
            self._session = None  # first: memory may not hold two sessions
            self._weights = changed
            self._session = self._open(self._weights)  # reads the weights in place

    def close(self) -> None:
        self._binding_at.cache_clear()
        self._session = None
        self._weights = {}

    def _open(self, weights: Mapping[str, Any]) -> Any:
        """Open a session with these values in place of the file's own."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        # each graph has its own threads; spinning ones would take the cores from the next graph
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # errors are raised too, and warnings are about its own constant folding
        options.add_external_initializers(list(weights), list(weights.values()))
        try:
            return ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise PlanCorrupt(f"ONNX Runtime cannot load {self._path}: {error}; build again") from error

    def _bind(self, addresses: tuple[tuple[str, int, tuple[int, ...]], ...]) -> Any:
        if self._session is None:
            raise PlanCorrupt(f"{self._path} could not be opened again after a LoRA; load the plans again")
        binding = self._session.io_binding()
        tensors = {name: (shape, address) for name, address, shape in addresses}
        for spec in self._graph.inputs:
            binding.bind_input(spec.name, "cpu", 0, np.dtype(spec.dtype).type, *tensors[spec.name])
        for spec in self._graph.outputs:
            binding.bind_output(spec.name, "cpu", 0, np.dtype(spec.dtype).type, *tensors[spec.name])
        return binding


def _failure(path: Path, words: str) -> DeviceError:
    """Return the error for ONNX Runtime's words about a pass that failed."""
    if match := re.search(r"allocate memory for requested buffer of size (\d+)", words):
        return OutOfDeviceMemory(
            f"ONNX Runtime could not allocate {int(match[1]) / 1e6:,.0f} MB to run {path.name}; "
            "free memory, or generate smaller images"
        )
    return DeviceError(f"ONNX Runtime cannot run {path.name}: {' '.join(words.split())[:300]}")
