"""Who executes a graph: the `Engine` protocol, the choice of a back end, and its refusals.

A back end allocates when it is constructed and only enqueues after that.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine import device
from engine.errors import BackendUnavailable, PlanMismatch
from engine.manifest import Flavor, Graph, GraphName, Manifest, Target

Bindings = Mapping[str, np.ndarray[Any, Any]]

PACKAGES: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx", "onnx": "onnxruntime"}
INSTALL: dict[Flavor, str] = {
    "tensorrt": "tensorrt (from NVIDIA's own package index)",
    "rtx": "tensorrt-rtx",
    "onnx": "onnxruntime",
}


class Engine(Protocol):
    """One graph, ready to run."""

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        """Starts the graph on `stream`.

        Args:
            stream: CUDA stream handle; 0 on a CPU, where the call returns when the outputs are written.
            bindings: every input and output of the graph by name, C-contiguous, of the dtype the manifest gives.
                Addresses are kept as long as the same arrays are passed.
        """
        ...


def load_engines(directory: Path, manifest: Manifest, threads: int = 0) -> dict[GraphName, Engine]:
    """The three engines of a plan directory.

    Args:
        threads: CPU threads per graph; 0 for one per core. TensorRT ignores it.

    Raises:
        BackendUnavailable: the library or device is not there.
        PlanMismatch: the plans were built by another version of it, or for another GPU.
    """
    flavor = manifest.target.flavor
    _require_package(flavor)
    if flavor != "onnx":
        _require_same_version(manifest.target)
        _require_same_device(manifest.target)
        raise BackendUnavailable(
            f"these are {flavor} plans; this version of zimage-trt builds them but does not run them yet. "
            "Serve plans built with: build-engines --flavor onnx"
        )
    from engine.onnxruntime_engine import OnnxRuntimeEngine  # only who runs ONNX pays for its import

    return {name: OnnxRuntimeEngine(directory / graph.file, graph, threads) for name, graph in manifest.graphs.items()}


def check_bindings(graph: Graph, bindings: Bindings) -> None:
    """Asserts our own invariant: names, dtypes and layout of the bindings are those of the graph."""
    for spec in (*graph.inputs, *graph.outputs):
        array = bindings[spec.name]
        assert array.dtype == spec.dtype, f"{spec.name}: {array.dtype}, the graph has {spec.dtype}"
        assert array.flags.c_contiguous, f"{spec.name} is not contiguous"


def _require_package(flavor: Flavor) -> None:
    package = PACKAGES[flavor]
    if importlib.util.find_spec(package) is None:
        raise BackendUnavailable(
            f"{flavor} plans need the package {package}, which is not installed; "
            f"install it with: pip install {INSTALL[flavor]}"
        )


def _require_same_version(target: Target) -> None:
    package = PACKAGES[target.flavor]
    installed = f"{package} {importlib.import_module(package).__version__}"
    if installed != target.builder:
        raise PlanMismatch(
            f"the plans were built by {target.builder}, installed is {installed}; "
            "install that version or run build-engines again"
        )


def _require_same_device(target: Target) -> None:
    capability = device.compute_capability()
    if capability not in target.compute_capabilities:
        raise PlanMismatch(
            f"the plans are for compute capability {', '.join(target.compute_capabilities)}, "
            f"this GPU has {capability}; run build-engines again, here or with --compute-capability {capability}"
        )
