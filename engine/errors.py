"""The one exception tree of zimage-trt.

    ZImageError
    |- InvalidRequest            a request that cannot be generated; `param` names the field
    |  |- UnsupportedShape       a size or batch outside the plan's profiles
    |- CheckpointError           weights or configs that do not match the model or each other
    |- BuildError                tracing, parity, TensorRT or the disk failed
    |- PlanError                 a plan directory that must not be served
    |  |- PlanNotFound           no plan directory
    |  |- PlanCorrupt            files are missing, truncated or altered
    |  |- PlanMismatch           intact, but for another GPU, TensorRT or zimage-trt
    |  |- SelfTestFailed         intact, but this device computes something else from it
    |- LoraMismatch              a LoRA that cannot be applied to these plans
    |- BackendUnavailable        the library or device for this flavor is not there
    |- DeviceError               CUDA, TensorRT or ONNX Runtime failed at run time; if `sticky`, replace the process
    |  |- OutOfDeviceMemory      not enough memory of the GPU, page-locked memory, or memory for ONNX Runtime
    |- NonFiniteOutput           NaN or Inf in latents or image

Messages say what was found, what was expected and what to do.
"""


class ZImageError(Exception):
    """Any error of zimage-trt, with a message for its user."""


class InvalidRequest(ZImageError):
    """A request that cannot be generated. `param` is the name of the invalid field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedShape(InvalidRequest):
    """An image size or batch that no profile of the plans covers."""


class CheckpointError(ZImageError):
    """A checkpoint that is incomplete, damaged, or does not match its own config."""


class BuildError(ZImageError):
    """Plans could not be built; no directory that looks complete was left behind."""


class PlanError(ZImageError):
    """A plan directory that must not be served."""


class PlanNotFound(PlanError):
    """No plan directory where one was expected."""


class PlanCorrupt(PlanError):
    """A plan directory whose files are missing, truncated or altered."""


class PlanMismatch(PlanError):
    """An intact plan directory made for another GPU, TensorRT or version of zimage-trt."""


class SelfTestFailed(PlanError):
    """An intact plan directory from which this device, driver and TensorRT compute something else than FP32 does."""


class LoraMismatch(ZImageError):
    """A LoRA that was not prepared, or was prepared for other plans."""


class BackendUnavailable(ZImageError):
    """The library or device that a flavor needs is not there."""


class DeviceError(ZImageError):
    """CUDA, TensorRT or ONNX Runtime failed at run time. If `sticky`, the GPU is unusable in this process."""

    def __init__(self, message: str, *, sticky: bool = False) -> None:
        super().__init__(message)
        self.sticky = sticky


class OutOfDeviceMemory(DeviceError):
    """The device does not have enough memory."""


class NonFiniteOutput(ZImageError):
    """Latents or an image hold NaN or Inf; the result would be a black image."""
