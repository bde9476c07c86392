"""The CUDA device that plans would run on, asked of the driver alone: no context is made, no memory taken."""

from typing import Any

from engine.errors import BackendUnavailable


def compute_capability() -> str:
    """The first device's, such as "8.9".

    Raises:
        BackendUnavailable: there is no driver, no device, or no cuda-bindings to ask with.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendUnavailable("TensorRT plans need cuda-bindings; pip install cuda-bindings") from error
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:  # cuda-bindings does not find libcuda
        raise BackendUnavailable("TensorRT plans need a CUDA device, and no NVIDIA driver is installed here") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendUnavailable(f"TensorRT plans need a CUDA device; the driver answers {status.name}")
    return ".".join(str(_attribute(driver, f"COMPUTE_CAPABILITY_{part}")) for part in ("MAJOR", "MINOR"))


def _attribute(driver: Any, name: str) -> int:
    status, value = driver.cuDeviceGetAttribute(driver.CUdevice_attribute[f"CU_DEVICE_ATTRIBUTE_{name}"], 0)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendUnavailable(f"the CUDA driver does not tell {name}: {status.name}")
    return int(value)
