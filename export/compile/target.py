"""The target of a build: flavor and GPUs. Imports PyTorch only where a GPU matters."""

import re
from collections.abc import Sequence
from typing import Literal

from engine.backends.load import NOT_RTX, PACKAGES, RTX_COMPUTE_CAPABILITIES
from engine.errors import BackendUnavailable, BuildError
from engine.plan.manifest import Flavor
from export.compile.tensorrt_build import import_tensorrt
from export.precision.dtypes import TURING
from export.progress import BuildProgress


def choose_flavor(wanted: Flavor | Literal["auto"], targets_named: bool, progress: BuildProgress) -> Flavor:
    """Return the flavor of the command line. For "auto", choose by this machine and print the reason."""
    if wanted != "auto":
        return wanted
    flavor, why = _automatic(targets_named)
    progress.console.print(f"--flavor auto: {flavor}, since {why}", highlight=False)
    return flavor


def compute_capabilities(flavor: Flavor, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the compute capabilities to build for, none for ONNX.

    Args:
        wanted: compute capabilities of the command line.

    Raises:
        BuildError: the flavor does not support `wanted`.
        BackendUnavailable: the flavor builds for the GPU of this machine, and there is none.
    """
    if flavor == "rtx":
        return _rtx(wanted)
    if wanted:
        raise BuildError(f"--compute-capability needs --flavor rtx, got {flavor}")
    if flavor == "onnx":
        return ()
    import_tensorrt(flavor)
    if not _has_gpu():
        raise BackendUnavailable(
            "--flavor tensorrt builds for the GPU of this machine, and there is none; "
            "--flavor rtx builds ahead of time for GPUs named by --compute-capability"
        )
    return (_device_capability(),)


def require_refit(flavor: Flavor, capabilities: tuple[str, ...]) -> None:
    """Raise BackendUnavailable if refittable plans cannot be built here.

    TensorRT-RTX compiles the kernels of refittable plans during the build, on the target GPU (docs/findings.md).
    TensorRT 11.3 can drop the biases of refittable matrix products, a known issue in its release notes.
    """
    if flavor == "tensorrt" and re.match(r"11\.3\b", installed := import_tensorrt(flavor).__version__):
        raise BackendUnavailable(
            f"--refittable: tensorrt {installed} is installed, and 11.3 can drop biases from refittable plans, which "
            "gives wrong images (its release notes); install another version of tensorrt, or merge the LoRA with --lora"
        )
    if flavor == "rtx" and not (_has_gpu() and capabilities == (_device_capability(),)):
        raise BackendUnavailable(
            "--refittable --flavor rtx builds on the GPU that the plans are for, and needs it named alone by "
            "--compute-capability; --lora merges a LoRA without a GPU"
        )


def _automatic(targets_named: bool) -> tuple[Flavor, str]:
    if targets_named:
        return "rtx", "--compute-capability names GPUs to build for ahead of time"
    if not _has_gpu():
        return "onnx", "there is no CUDA device here"
    if _imports("tensorrt"):
        return "tensorrt", f"there is a CUDA device and {PACKAGES['tensorrt']} is installed"
    capability = _device_capability()
    if capability not in RTX_COMPUTE_CAPABILITIES:
        return (
            "onnx",
            f"{PACKAGES['tensorrt']} is not installed, which the CUDA device of {capability} needs: {NOT_RTX}",
        )
    if _imports("rtx"):
        return "rtx", f"there is a CUDA device of {capability} and {PACKAGES['rtx']} is installed"
    return "onnx", f"nothing installed here builds for the CUDA device of {capability}"


def _imports(flavor: Flavor) -> bool:
    try:
        import_tensorrt(flavor)
    except BackendUnavailable:
        return False
    return True


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device_capability() -> str:
    import torch

    return "{}.{}".format(*torch.cuda.get_device_capability())


def _rtx(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return `wanted`, or by default all that TensorRT-RTX builds for."""
    if TURING in wanted:
        raise BuildError(
            f"TensorRT-RTX has no FP32 matrix products for compute capability {TURING}, and the denoiser has some in "
            f"every precision; leave {TURING} out, or build with --flavor tensorrt on that GPU"
        )
    require_distinct("--compute-capability", wanted)
    return wanted or RTX_COMPUTE_CAPABILITIES


def require_distinct(option: str, values: Sequence[str]) -> None:
    """Raise BuildError if an option names something twice."""
    for value in values:
        if values.count(value) > 1:
            raise BuildError(f"{option} names {value} {values.count(value)} times; name it once")
