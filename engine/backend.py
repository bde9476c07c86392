"""Which back end executes a plan directory, and what is refused before any is loaded."""

import importlib
import importlib.util
from pathlib import Path

from engine import device
from engine.engine import Engine
from engine.errors import BackendUnavailable, PlanMismatch
from engine.manifest import Flavor, GraphName, Manifest, Target

PACKAGES: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx", "onnx": "onnxruntime"}
INSTALL: dict[Flavor, str] = {
    "tensorrt": "tensorrt, from NVIDIA's own package index",
    "rtx": "tensorrt-rtx",
    "onnx": "onnxruntime",
}


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
