"""A graph executed by ONNX Runtime on the CPU: the default without a GPU, and the oracle in tests."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from engine.engine import Bindings, check_bindings
from engine.errors import PlanCorrupt
from engine.manifest import Graph

BINDINGS_KEPT = 64  # sets of arrays: two per shape for the denoiser's alternating latents


class OnnxRuntimeEngine:
    """Reads and writes the caller's arrays in place; a set of arrays is bound once, not per call."""

    def __init__(self, path: Path, graph: Graph, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings are about its own constant folding
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise PlanCorrupt(f"ONNX Runtime does not load {path}: {error}") from error
        self._graph = graph
        self._binding_at = lru_cache(maxsize=BINDINGS_KEPT)(self._bind)

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == 0, "a CPU has no streams"
        check_bindings(self._graph, bindings)
        where = tuple((name, array.ctypes.data, array.shape) for name, array in bindings.items())
        self._session.run_with_iobinding(self._binding_at(where))

    def _bind(self, where: tuple[tuple[str, int, tuple[int, ...]], ...]) -> Any:
        binding = self._session.io_binding()
        address = {name: (shape, pointer) for name, pointer, shape in where}
        for spec in self._graph.inputs:
            binding.bind_input(spec.name, "cpu", 0, np.dtype(spec.dtype).type, *address[spec.name])
        for spec in self._graph.outputs:
            binding.bind_output(spec.name, "cpu", 0, np.dtype(spec.dtype).type, *address[spec.name])
        return binding
