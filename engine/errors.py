"""The one exception tree of zimage-trt.

    ZImageError
    |- InvalidRequest            the caller asked for what cannot be generated; `param` names the field
    |  |- UnsupportedShape       a size or batch outside the plan's profiles
    |- CheckpointError           weights or configs that do not fit the model or each other
    |- BuildError                tracing, parity or TensorRT failed, or the disk did
    |- PlanError                 a plan directory that must not be served
    |  |- PlanNotFound           nothing there
    |  |- PlanCorrupt            half-written, truncated or altered
    |  |- PlanMismatch           intact, but for another GPU, TensorRT or zimage-trt
    |- LoraMismatch              a LoRA that these plans cannot take
    |- BackendUnavailable        what would execute or build this flavor is not installed or has no device
    |- DeviceError               CUDA or TensorRT failed at run time; `sticky`: the process must be replaced
    |  |- OutOfDeviceMemory      the GPU, or page-locked memory, has no room
    |- NonFiniteOutput           NaN or Inf in latents or image

Messages say what was got, what was expected and what to do.
"""


class ZImageError(Exception):
    """Anything that zimage-trt refuses or fails to do, with a message meant for its user."""


class InvalidRequest(ZImageError):
    """A request that cannot be generated. `param` is the request's field that is at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedShape(InvalidRequest):
    """An image size or batch that no profile of the plans covers."""


class CheckpointError(ZImageError):
    """A checkpoint that is incomplete, damaged, or does not match its own config."""


class BuildError(ZImageError):
    """Plans could not be built; nothing that looks finished was left behind."""


class PlanError(ZImageError):
    """A plan directory that must not be served."""


class PlanNotFound(PlanError):
    """There is no plan directory where one was expected."""


class PlanCorrupt(PlanError):
    """A plan directory whose files are missing, truncated or altered."""


class PlanMismatch(PlanError):
    """An intact plan directory made for another GPU, TensorRT or version of zimage-trt."""


class LoraMismatch(ZImageError):
    """A LoRA that was not prepared, or not for these plans."""


class BackendUnavailable(ZImageError):
    """The library or device that a flavor needs is not there."""


class DeviceError(ZImageError):
    """CUDA or TensorRT failed at run time. If `sticky`, nothing works in this process any more."""

    def __init__(self, message: str, *, sticky: bool = False) -> None:
        super().__init__(message)
        self.sticky = sticky


class OutOfDeviceMemory(DeviceError):
    """The GPU has too little memory for what was asked."""


class NonFiniteOutput(ZImageError):
    """A latent or image holds NaN or Inf; serving it would show a black image."""
