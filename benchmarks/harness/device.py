"""The device that a benchmark runs on: its clock's edge, and its memory. It does not know what runs there."""

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
        """Waits until nothing is running; a CPU is never behind."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def used(self) -> int | None:
        """Bytes of GPU memory that are taken, by anybody, or None on a CPU.

        A CPU has no figure: the kernel's high-water mark is of the whole process, in which everybody generates.
        """
        if not self.is_gpu:
            return None
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def nvidia_smi_id(self) -> str:
        """What nvidia-smi calls the GPU, whose own numbers are not torch's."""
        return f"GPU-{torch.cuda.get_device_properties(0).uuid}"

    def release(self) -> None:
        """Gives back what torch keeps for later, and forgets its high-water mark."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_allocated(self) -> int | None:
        """Bytes that torch's tensors held at once since `release`, beyond those that stay; None on a CPU."""
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated() if self.is_gpu else None


CPU = Device("cpu")
