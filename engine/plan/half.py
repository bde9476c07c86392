"""Conversion between FP16 and FP32 in vector instructions, bit for bit equal to numpy's.

numpy converts one number after the other (2.4: 1.7 and 2.7 ns), since its wheels must run where no instruction for it
exists. Integer arithmetic on whole blocks takes a fraction of that. Numbers that it does not cover are left to numpy:
zeros, subnormals, infinities, NaN, and what rounds to an infinity. Knows numbers; not weights.
"""

import numpy as np

from engine.array import Array

MANTISSA_DIFFERENCE = 13  # bits of FP32's mantissa that FP16's lacks
EXPONENT_DIFFERENCE = np.int32((127 - 15) << 23)  # of the biases, in FP32's bits
SMALLEST_NORMAL = np.int32((127 - 14) << 23)  # bits of 2**-14
ORDINARY = np.uint32(0x477FF000 - int(SMALLEST_NORMAL))  # bits of 65520, which rounds to infinity, less the smallest
MAX_EXCEPTIONS = 16  # a block is left to numpy if more than one number in so many is


class HalfConverter:
    """Converts blocks of up to `size` numbers in memory of its own. Threads need one each."""

    def __init__(self, size: int) -> None:
        self._bits, self._more_bits = np.empty(size, np.int32), np.empty(size, np.int32)
        self._half_bits, self._exceptions = np.empty(size, np.uint16), np.empty(size, np.bool_)

    def widen(self, half: Array, single: Array) -> None:
        """Write FP16 numbers as FP32.

        Args:
            half, single: of one shape, C-contiguous; at most `size` numbers.
        """
        flat, out = half.reshape(-1), single.reshape(-1)
        # an exponent field of 0 or 31, by one comparison after the subtraction has wrapped around
        exponents, is_exception = self._half_bits[: flat.size], self._exceptions[: flat.size]
        np.bitwise_and(flat.view(np.uint16), np.uint16(0x7C00), out=exponents)
        np.subtract(exponents, np.uint16(0x0400), out=exponents)
        np.greater_equal(exponents, np.uint16(0x7800), out=is_exception)
        exceptions = np.flatnonzero(is_exception)
        if exceptions.size * MAX_EXCEPTIONS > flat.size:
            np.copyto(out, flat)
            return
        bits = out.view(np.int32)
        np.copyto(bits, flat.view(np.int16))  # extends the sign
        np.left_shift(bits, MANTISSA_DIFFERENCE, out=bits)
        np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # 0x8FFFE000: the sign once, exponent, mantissa
        np.add(bits, EXPONENT_DIFFERENCE, out=bits)
        out[exceptions] = flat[exceptions]

    def narrow(self, single: Array, half: Array) -> None:
        """Write FP32 numbers as FP16, rounded to nearest even.

        Args:
            single, half: of one shape, C-contiguous; at most `size` numbers.
        """
        flat, out = single.reshape(-1), half.reshape(-1)
        size, source = flat.size, flat.view(np.int32)
        bits, rest, is_exception = self._bits[:size], self._more_bits[:size], self._exceptions[:size]
        np.bitwise_and(source, np.int32(0x7FFFFFFF), out=bits)
        np.subtract(bits, SMALLEST_NORMAL, out=bits)  # wraps around, if smaller, to more than ORDINARY
        np.greater_equal(bits.view(np.uint32), ORDINARY, out=is_exception)
        exceptions = np.flatnonzero(is_exception)
        if exceptions.size * MAX_EXCEPTIONS > size:
            with np.errstate(over="ignore"):
                np.copyto(out, flat, casting="same_kind")
            return
        np.right_shift(source, MANTISSA_DIFFERENCE, out=bits)
        np.bitwise_and(bits, 1, out=bits)
        np.add(bits, source, out=bits)
        np.add(bits, np.int32(0x0FFF - int(EXPONENT_DIFFERENCE)), out=bits)  # half of the last place, less one
        np.right_shift(bits, MANTISSA_DIFFERENCE, out=rest)
        np.right_shift(bits, 16, out=bits)
        np.bitwise_and(bits, np.int32(0x8000), out=bits)
        np.bitwise_or(bits, rest, out=bits)
        np.copyto(out.view(np.uint16), bits.view(np.uint32), casting="same_kind")
        with np.errstate(over="ignore"):
            out[exceptions] = flat[exceptions]
