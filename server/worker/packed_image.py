"""Init images as bytes, for the store and for messages: losslessly compressed. Knows neither."""

from dataclasses import dataclass, field

import msgspec
from isal import isal_zlib
from isal.igzip_lib import IsalError

from engine.init_image import Box, InitImage, Paste
from engine.size import Size

LEVEL = 1  # of ISA-L; higher ones take longer and save hardly any (`zimage-bench encode`)
MAX_BYTES = 96 << 20  # of an unpacked image; the largest has an original of 4096x4096 and its mask


class _Packed(msgspec.Struct, array_like=True):
    size: tuple[int, int]
    pixels: bytes
    mask: bytes | None
    paste: tuple[tuple[int, int], bytes, tuple[int, int, int, int], bytes] | None


@dataclass(frozen=True, slots=True)
class PackedImage:
    """A packed init image, and the bytes that it has unpacked."""

    data: bytes = field(repr=False)
    unpacked_bytes: int


def pack(image: InitImage) -> PackedImage:
    """Return an init image as bytes; its notes are left out."""
    paste = image.paste
    packed = _Packed(
        image.size,
        image.pixels,
        image.mask,
        None if paste is None else (paste.size, paste.pixels, paste.box, paste.mask),
    )
    return PackedImage(isal_zlib.compress(msgspec.msgpack.encode(packed), level=LEVEL), image.nbytes)


def unpack(data: bytes) -> InitImage:
    """Return the init image of bytes.

    Raises:
        ValueError: the bytes are damaged.
    """
    stream = isal_zlib.decompressobj()
    try:
        encoded = stream.decompress(data, MAX_BYTES)
        if not stream.eof:
            raise ValueError("they are cut, or too many")
        packed = msgspec.msgpack.decode(encoded, type=_Packed)
    except (IsalError, msgspec.MsgspecError) as error:  # type: ignore[misc]  # isal has no types for it
        raise ValueError(f"they are damaged: {error}") from error
    paste = None
    if packed.paste is not None:
        size, pixels, box, mask = packed.paste
        paste = Paste(Size(*size), pixels, Box(*box), mask)
    return InitImage(Size(*packed.size), packed.pixels, packed.mask, paste)
