"""Small files that ask for much: pixels, memory, time.

`pixels` is the largest area that the reader accepts; bombs are as large as that, or larger.
"""

import functools
import io
import math
import random
import struct
import zlib

from PIL import Image, ImageCms

from benchmarks.hostile.parts import (
    Chunk,
    jpeg,
    jpeg_segments,
    ordinary,
    picture,
    png,
    png_chunks,
    png_header,
    riff,
    written,
)

BITS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # channels by PNG's colour type
COMPRESSION = 1


def _sides(rng: random.Random, pixels: int, most: int = 2**31 - 1) -> tuple[int, int]:
    """Return the sides of an image of nearly so many pixels, often thin."""
    square = math.isqrt(pixels)
    width = min(most, rng.choice((square, square, square // 7 + 1, pixels // most + 1, 1 + pixels // 2000)))
    return width, min(most, pixels // width)


@functools.lru_cache(4)
def _zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), COMPRESSION)


def png_of_many_pixels(rng: random.Random, pixels: int) -> bytes:
    """The largest PNG that is accepted: up to 8 bytes a pixel from few kilobytes, some of it interlaced."""
    colours, depth = rng.choice(((2, 8), (6, 8), (6, 16), (0, 16), (0, 1), (3, 8)))
    width, height = _sides(rng, pixels)
    rows = height * (1 + (width * BITS[colours] * depth + 7) // 8)
    palette = [(b"PLTE", bytes(768)), (b"tRNS", bytes(256))] if colours == 3 else []
    interlaced = rng.random() < 0.3
    return png(
        [png_header(width, height, depth, colours, interlaced), *palette, (b"IDAT", _zeros(2 * rows)), (b"IEND", b"")]
    )


def png_beyond_the_limit(rng: random.Random, pixels: int) -> bytes:
    width, height = rng.choice(
        ((pixels + 1, 1), (1, pixels + 1), (2**31 - 1, 2**31 - 1), (pixels // 2, 3), (10**5, 10**5))
    )
    return png([png_header(width, height), (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b"")])


def png_of_text_bombs(rng: random.Random) -> bytes:
    """Texts and profiles that inflate to a hundred times their size; many, or one that is larger than all limits."""
    packed = _zeros(rng.choice((1_000_000, 1_100_000, 50_000_000)))
    kind, head = rng.choice(((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")))
    chunks = png_chunks(ordinary(rng, "PNG"))
    return png([chunks[0], *[(kind, head + packed)] * rng.choice((1, 50)), *chunks[1:]])


def png_of_many_chunks(rng: random.Random) -> bytes:
    chunks = png_chunks(ordinary(rng, "PNG"))
    kind = rng.choice((b"tEXt", b"IDAT", b"fcTL", b"abCd", b"gAMA", b"pHYs"))
    more: list[Chunk] = [(kind, rng.randbytes(rng.choice((0, 4, 26))))] * rng.choice((5_000, 100_000))
    return png([chunks[0], *more, *chunks[1:], *more[:1000]])


def animated_png_of_many_frames(rng: random.Random, pixels: int) -> bytes:
    first = Image.new("L", _sides(rng, pixels // 20, 10_000))
    chunks = png_chunks(written(first, "PNG", compress_level=1))
    control = struct.pack(">IIIIIHHBB", 0, *first.size, 0, 0, 0, 1, 0, 0)
    frames: list[Chunk] = [(b"fcTL", control), (b"fdAT", bytes(4))] * 3000
    count = (b"acTL", struct.pack(">II", rng.choice((1, 3000, 2**31)), 0))
    return png([chunks[0], count, (b"fcTL", control), *chunks[1:-1], *frames, chunks[-1]])


def gif_of_many_pixels(rng: random.Random, pixels: int) -> bytes:
    """A small frame on the largest screen, or a frame that grows beyond its screen."""
    data = bytearray(ordinary(rng, "GIF"))
    width, height = _sides(rng, rng.choice((pixels, 2 * pixels)), 65_535)
    at = rng.choice((6, data.index(b"\x2c", 13) + 5))
    struct.pack_into("<HH", data, at, width, height)
    return bytes(data)


def gif_of_many_frames(rng: random.Random) -> bytes:
    image = picture(rng, "P")
    data = written(image, "GIF")
    start = data.index(b"\x2c", 13)
    return data[:start] + data[start:-1] * rng.choice((100, 3000)) + b";"


def webp_of_many_pixels(rng: random.Random, pixels: int) -> bytes:
    width, height = _sides(rng, pixels, 16_383)
    image = Image.new(rng.choice(("RGB", "RGBA")), (width, height), rng.randrange(2**24))
    return written(image, "WEBP", lossless=True, quality=0, method=0)


def webp_of_a_large_canvas(rng: random.Random, pixels: int) -> bytes:
    """A canvas as large as is accepted, or 2**48 pixels, around a small image; animated or not."""
    width, height = rng.choice((_sides(rng, pixels, 2**24), (2**24, 2**24), (16_383, 16_383)))
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    image = ordinary(rng, "WEBP")
    frame = (b"ANMF", bytes(16) + image[12:])
    frames = [(b"ANIM", bytes(6)), *[frame] * rng.choice((1, 500))]
    return riff([(b"VP8X", bytes([rng.choice((0, 2, 0x12))]) + bytes(3) + canvas), *frames])


def bmp_of_many_pixels(rng: random.Random, pixels: int) -> bytes:
    """A run-length encoded image of which all but a few bytes are skipped."""
    width, height = _sides(rng, pixels)
    data = bytes((0, 2, 255, 255)) * rng.randint(1, 2000) + bytes((255, 1)) * rng.randint(1, 2000) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height * rng.choice((1, -1)), 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(data), 0, 0, 14 + 40 + 1024) + header + bytes(1024) + data


@functools.lru_cache(4)
def _progressive(width: int, height: int) -> list[bytes]:
    stream = io.BytesIO()
    Image.new("L", (width, height), 77).save(stream, "JPEG", progressive=True, quality=90)
    return jpeg_segments(stream.getvalue())


def jpeg_of_many_scans(rng: random.Random, pixels: int) -> bytes:
    """A progressive JPEG that repeats its cheapest scan a thousand times: each one passes over all of the image."""
    segments = _progressive(*_sides(random.Random(0), pixels, 65_500))
    scan = min((s for s in segments if s[1] == 0xDA), key=len)
    return jpeg(segments + [scan] * rng.choice((300, 3000)))


def jpeg_of_many_markers(rng: random.Random) -> bytes:
    segments = jpeg_segments(ordinary(rng, "JPEG"))
    more = rng.choice((b"\xff\xfe\x00\x02", b"\xff", b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xe2\x00\x02", b"\xff\xd0"))
    return jpeg([segments[0], more * rng.choice((1000, 200_000)), *segments[1:]])


def jpeg_beyond_the_limit(rng: random.Random) -> bytes:
    segments = jpeg_segments(ordinary(rng, "JPEG"))
    for index, segment in enumerate(segments):
        if segment[1] == 0xC0:
            segments[index] = segment[:5] + rng.choice((b"\xff\xff\xff\xff", b"\xff\xdc\xff\xdc")) + segment[9:]
    return jpeg(segments)


def exif_bomb(rng: random.Random) -> bytes:
    """EXIF data whose directories refer to themselves, or state a thousand million values."""
    entries = rng.choice((3, 500))
    order, short, long = rng.choice(((b"II*\0", "<H", "<HHII"), (b"MM\0*", ">H", ">HHII")))
    tag = rng.choice((0x0112, 0x8769, 0x8825, 0x014A, 0x927C))
    entry = struct.pack(long, tag, rng.choice((3, 4, 5, 7, 12)), rng.choice((1, 2**30, 2**32 - 1)), 8)
    offset = struct.pack(long[0] + "I", 8)
    tiff = order + offset + struct.pack(short, entries) + entry * entries + offset
    return written(picture(rng), rng.choice(("JPEG", "PNG", "WEBP")), exif=b"Exif\0\0" + tiff)


def profile_bomb(rng: random.Random) -> bytes:
    """A colour profile whose tables are larger than the file, or that is nothing but large."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # the time of its creation
    for _ in range(rng.randint(1, 12)):
        at = rng.randrange(128, len(profile) - 4)
        profile[at : at + 4] = rng.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"mft2", b"mAB ", b"A2B0")
        )
    if rng.random() < 0.3:
        profile += bytes(rng.choice((100_000, 900_000)))
    return written(picture(rng), rng.choice(("JPEG", "PNG", "WEBP")), icc_profile=bytes(profile))
