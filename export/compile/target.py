"""What to build for: which flavor, which GPUs, by which builder."""

from typing import Literal

import torch

from engine.backends.load import PACKAGES
from engine.errors import BackendUnavailable, BuildError
from engine.plan.manifest import Flavor, Precision
from export.compile.tensorrt_build import RTX_COMPUTE_CAPABILITIES, import_tensorrt
from export.precision.dtypes import TURING
from export.progress import BuildProgress


def choose_flavor(wanted: Flavor | Literal["auto"], targets_named: bool, progress: BuildProgress) -> Flavor:
    """The flavor that was asked for, or by what is here, with a line that says why."""
    if wanted != "auto":
        return wanted
    flavor, why = _automatic(targets_named)
    progress.console.print(f"--flavor auto: {flavor}, since {why}", highlight=False)
    return flavor


def compute_capabilities(flavor: Flavor, precision: Precision, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs to build for; none for ONNX.

    Raises:
        BuildError: `wanted` does not go with the flavor or the precision.
        BackendUnavailable: the flavor builds for the GPU at hand, and there is none.
    """
    if flavor == "rtx":
        return _rtx(precision, wanted)
    if wanted:
        raise BuildError(f"--compute-capability needs --flavor rtx, got {flavor}")
    if flavor == "onnx":
        return ()
    import_tensorrt(flavor)
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "--flavor tensorrt builds for the GPU it runs on, and there is none here; "
            "--flavor rtx builds ahead of time for GPUs named by --compute-capability"
        )
    return (_device_capability(),)


def require_refit(flavor: Flavor, capabilities: tuple[str, ...]) -> None:
    """Raises BackendUnavailable where plans whose weights can be swapped cannot be built.

    TensorRT-RTX compiles their kernels as it builds, on the GPU that they are for (docs/findings.md).
    """
    if flavor == "rtx" and not (torch.cuda.is_available() and capabilities == (_device_capability(),)):
        raise BackendUnavailable(
            "--refittable --flavor rtx builds on the GPU that the plans are for, and needs it named alone by "
            "--compute-capability; --lora merges a LoRA without a GPU"
        )


def _automatic(targets_named: bool) -> tuple[Flavor, str]:
    if targets_named:
        return "rtx", "--compute-capability names GPUs to build for ahead of time"
    if not torch.cuda.is_available():
        return "onnx", "there is no CUDA device here"
    if _imports("tensorrt"):
        return "tensorrt", f"there is a CUDA device and {PACKAGES['tensorrt']} is installed"
    capability = _device_capability()
    if capability in RTX_COMPUTE_CAPABILITIES and _imports("rtx"):
        return "rtx", f"there is a CUDA device of {capability} and {PACKAGES['rtx']} is installed"
    return "onnx", f"nothing installed here builds for the CUDA device of {capability}"


def _imports(flavor: Flavor) -> bool:
    try:
        import_tensorrt(flavor)
    except BackendUnavailable:
        return False
    return True


def _device_capability() -> str:
    return "{}.{}".format(*torch.cuda.get_device_capability())


def _rtx(precision: Precision, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those asked for, or all that have BF16 if the precision has a use for it."""
    if precision == "bf16" and TURING in wanted:
        raise BuildError(f"compute capability {TURING} has no BF16; use --fp16, --fp32 or leave it out")
    return wanted or tuple(c for c in RTX_COMPUTE_CAPABILITIES if precision == "fp32" or c != TURING)
