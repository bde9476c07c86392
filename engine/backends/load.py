"""The choice of a backend for a plan directory, with checks before anything is loaded."""

import importlib
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.backends.base import Backend, Engine
from engine.backends.cuda import CudaRuntime
from engine.backends.host_memory import HostMemory
from engine.errors import BackendUnavailable, PlanMismatch
from engine.options import RuntimeOptions
from engine.plan.manifest import Flavor, GraphName, Manifest, Target
from engine.processor import processor_name, usable_cpus

log = logging.getLogger(__name__)

PACKAGES: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx", "onnx": "onnxruntime"}
# TensorRT-RTX 1.7 has 7.5 too, but no FP32 matrix products for it, and every denoiser has some (docs/findings.md).
RTX_COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
INSTALL: dict[Flavor, str] = {
    "tensorrt": "tensorrt, from NVIDIA's own package index",
    "rtx": "tensorrt-rtx",
    "onnx": "onnxruntime",
}
OLDEST_RTX = (1, 7)
NOT_RTX = (
    f"TensorRT-RTX plans of Z-Image are for {', '.join(RTX_COMPUTE_CAPABILITIES)}; H100 and H200 (9.0), B200 (10.0) "
    f"and Turing (7.5) need {INSTALL['tensorrt']}"
)


def load_backend(directory: Path, manifest: Manifest, options: RuntimeOptions) -> Backend:
    """Load the backend of a plan directory.

    Raises:
        BackendUnavailable: the library cannot be imported, or there is no device.
        PlanMismatch: the plans were built by another version of the library, or for another GPU.
        PlanCorrupt, OutOfDeviceMemory: the plans cannot be loaded.
    """
    if not options.image_input:
        manifest = manifest.without_image_input()
    target = manifest.target
    for name in options.without_effect(target.flavor):
        log.warning("%s has no effect on %s plans", name, target.flavor)
    package = _import_package(target.flavor)
    if target.flavor == "onnx":
        return _load_onnx(directory, manifest, options)
    _require_same_version(target, package.__version__)
    cuda = CudaRuntime()
    _require_same_device(target, cuda)
    return _load_tensorrt(cuda, directory, manifest, options)


def _load_onnx(directory: Path, manifest: Manifest, options: RuntimeOptions) -> Backend:
    from engine.backends.onnxruntime import OnnxRuntimeEngine  # its import takes time, so only ONNX plans pay for it

    memory = HostMemory(manifest, tuple(manifest.choose_profiles(options.profiles).values()), options.slots)
    engines: dict[GraphName, Engine] = {
        name: OnnxRuntimeEngine(directory / graph.file, graph, options.threads)
        for name, graph in manifest.graphs.items()
    }

    def close() -> None:
        for engine in engines.values():
            engine.close()
        memory.close()

    threads = options.threads or len(usable_cpus())
    return Backend(memory, engines, close, processor=processor_name(), threads=threads)


def _load_tensorrt(cuda: CudaRuntime, directory: Path, manifest: Manifest, options: RuntimeOptions) -> Backend:
    from engine.backends.tensorrt.load import load_plans
    from engine.backends.tensorrt.plan import TensorRtPlan

    is_rtx = manifest.target.flavor == "rtx"
    caches = kernel_cache_folder(options.runtime_cache or _cache_folder(), manifest, cuda)

    def open_plan(name: GraphName) -> TensorRtPlan:
        return TensorRtPlan(
            cuda,
            PACKAGES[manifest.target.flavor],
            directory / manifest.graphs[name].file,
            runtime_graphs=options.cuda_graphs != "off",
            cache=caches / f"{name}.cache",
        )

    engine_options = replace(options, cuda_graphs="off") if is_rtx else options  # RTX captures graphs by itself
    backend = load_plans(cuda, open_plan, directory, manifest, engine_options)
    return replace(backend, device=f"{cuda.name()}, driver {cuda.driver()}", processor=cuda.name())


def kernel_cache_folder(parent: Path, manifest: Manifest, cuda: CudaRuntime) -> Path:
    """Return the folder for kernels of these plans, this kind of GPU, this driver and this version of TensorRT-RTX.

    RTX refuses kernels of any other. With a folder for each, machines or GPUs that share `parent` do not replace each
    other's, and going back to an older driver finds its kernels again.
    """
    environment = f"{cuda.name()} driver {cuda.driver()} {manifest.target.builder}"
    return parent / manifest.plan_id / re.sub(r"[^A-Za-z0-9._]+", "-", environment)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zimage-trt"


def _import_package(flavor: Flavor) -> Any:
    package = PACKAGES[flavor]
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: a shared library cannot be loaded
        raise BackendUnavailable(
            f"{flavor} plans need the package {package}, which cannot be imported: {error}; "
            f"install it with: pip install {INSTALL[flavor]}"
        ) from error


def _require_same_version(target: Target, version: str) -> None:
    package = PACKAGES[target.flavor]
    if target.flavor == "rtx" and tuple(map(int, version.split(".")[:2])) < OLDEST_RTX:
        raise BackendUnavailable(
            f"{package} {version} is installed; before {'.'.join(map(str, OLDEST_RTX))} it keeps 57 MiB of host memory "
            "for each convolution of each context (its issue 39). "
            f"Install a newer one with: pip install --upgrade {INSTALL['rtx']}, and run build-engines again"
        )
    installed = f"{package} {version}"
    if installed != target.builder:
        raise PlanMismatch(
            f"the plans were built by {target.builder}, but {installed} is installed; "
            "install that version or run build-engines again"
        )


def _require_same_device(target: Target, cuda: CudaRuntime) -> None:
    capability = cuda.compute_capability()
    if capability in target.compute_capabilities:
        return
    if target.flavor == "rtx" and capability not in RTX_COMPUTE_CAPABILITIES:
        cure = f"{NOT_RTX}; on this GPU run: build-engines --flavor tensorrt"
    else:
        cure = f"run build-engines again, here or with --compute-capability {capability}"
    raise PlanMismatch(
        f"the plans are for compute capability {', '.join(target.compute_capabilities)}, "
        f"this GPU ({cuda.name()}) has {capability}; {cure}"
    )
