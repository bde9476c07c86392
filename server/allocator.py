"""Settings of the C library's allocator."""

import ctypes

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
LARGE = 1 << 17  # bytes


def give_back_large_blocks() -> None:
    """Return each large block to the system as soon as it is free; nothing where the C library has no `mallopt`.

    glibc raises its limit for such blocks to the size of the largest one freed so far, up to 32 MiB. The images of 200
    clients would then stay in the heap for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
