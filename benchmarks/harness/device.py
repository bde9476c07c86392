"""The device of a benchmark: synchronisation and memory. It does not know what runs on it."""

import gc

import torch


class Device:
    """A torch device: "cpu", or "cuda"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = torch.device(name).type

    @property
    def is_gpu(self) -> bool:
        return self.kind == "cuda"

    def synchronize(self) -> None:
        """Wait until the device is idle; nothing to do on a CPU."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def used(self) -> int | None:
        """Return the bytes of GPU memory in use by all processes, or None on a CPU.

        A CPU has no figure: the kernel's high-water mark covers the whole process, in which all runners generate.
        """
        if not self.is_gpu:
            return None
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def nvidia_smi_id(self) -> str:
        """Return the GPU's name for nvidia-smi, which numbers GPUs differently from torch."""
        return f"GPU-{torch.cuda.get_device_properties(0).uuid}"

    def release(self) -> None:
        """Free the memory that torch caches, and reset its peak."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_allocated(self) -> int | None:
        """Return the peak bytes of torch's tensors since `release`, minus those still held; None on a CPU."""
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated() if self.is_gpu else None


CPU = Device("cpu")
