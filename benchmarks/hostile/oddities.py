"""Files that are unusual: some are images that must be read, others are of another kind, or of two kinds at once."""

import io
import random
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from benchmarks.hostile.parts import ordinary, picture, png, png_header, written


def turned(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    return written(picture(rng), rng.choice(("JPEG", "PNG", "WEBP")), exif=exif.tobytes())


def print_colours(rng: random.Random) -> bytes:
    """A JPEG in CMYK, or in YCCK by the marker of Adobe's transform."""
    data = written(picture(rng, "CMYK"), "JPEG", quality=rng.randint(1, 100))
    marker = data.find(b"Adobe")
    return data if marker < 0 else data[: marker + 11] + bytes([rng.choice((0, 2))]) + data[marker + 12 :]


def sixteen_bits(rng: random.Random) -> bytes:
    colours, channels = rng.choice(((0, 1), (2, 3), (4, 2), (6, 4)))
    width, height = rng.randint(1, 40), rng.randint(1, 40)
    rows = b"".join(b"\0" + rng.randbytes(2 * channels * width) for _ in range(height))
    return png([png_header(width, height, 16, colours), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def few_bits(rng: random.Random) -> bytes:
    depth = rng.choice((1, 2, 4))
    width, height = rng.randint(1, 40), rng.randint(1, 40)
    rows = b"".join(b"\0" + rng.randbytes((width * depth + 7) // 8) for _ in range(height))
    return png([png_header(width, height, depth, 0), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def palette(rng: random.Random) -> bytes:
    """A palette with fewer colours than the pixels name, and any number of transparent ones."""
    width, height = rng.randint(1, 40), rng.randint(1, 40)
    colours = rng.choice((1, 16, 256))
    rows = b"".join(b"\0" + rng.randbytes(width) for _ in range(height))
    chunks = [(b"PLTE", rng.randbytes(3 * colours)), (b"tRNS", rng.randbytes(rng.randint(0, colours)))]
    return png([png_header(width, height, 8, 3), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def interlaced(rng: random.Random) -> bytes:
    """A PNG of one pixel to 40x40 in Adam7's seven passes."""
    width, height = rng.randint(1, 40), rng.randint(1, 40)
    rows = b""
    for x, y, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    ):  # fmt: skip
        columns, lines = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and lines > 0:
            rows += b"".join(b"\0" + rng.randbytes(3 * columns) for _ in range(lines))
    return png([png_header(width, height, interlaced=1), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def transparent(rng: random.Random) -> bytes:
    image = picture(rng, "RGBA")
    numbers = np.random.default_rng(rng.getrandbits(32))
    image.putalpha(Image.fromarray(numbers.integers(0, 256, (3, 3), np.uint8)).resize(image.size))
    return written(image, rng.choice(("PNG", "WEBP")))


def tiny_or_thin(rng: random.Random) -> bytes:
    size = rng.choice(((1, 1), (1, 2), (1, 3000), (3000, 1), (2, 2), (17, 1)))
    return written(picture(rng).resize(size), rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP")))


def animated(rng: random.Random) -> bytes:
    frames = [picture(rng).resize((40, 30)) for _ in range(rng.randint(2, 6))]
    return written(frames[0], rng.choice(("PNG", "WEBP", "GIF")), save_all=True, append_images=frames[1:])


def several_pictures(rng: random.Random) -> bytes:
    return written(picture(rng), "MPO", save_all=True, append_images=[picture(rng), picture(rng)])


def followed_by_another_file(rng: random.Random) -> bytes:
    """A polyglot: an image that is also an archive, a page or a program."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("index.html", "<script>alert(1)</script>")
    extra = rng.choice((archive.getvalue(), b"<script>alert(1)</script>", b"#!/bin/sh\nexit\n", b"%PDF-1.4\n%%EOF\n"))
    return ordinary(rng) + extra


def of_another_kind(rng: random.Random) -> bytes:
    """A file that is no image of an accepted format, whatever its name says."""
    name = rng.choice(
        ("TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "AVIF", "SGI", "EPS", "text", "text", "text", "text")
    )
    if name != "text":
        try:
            return written(picture(rng), name)
        except (OSError, KeyError):  # a library that this Pillow has not
            name = "text"
    return rng.choice(
        (
            b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><image href='file:///etc/passwd'/></svg>",
            b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>",
            b"<html><script>alert(1)</script>",
            b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
            b"push graphic-context\nviewbox 0 0 9 9\nfill 'url(https://127.0.0.1/x|id)'\npop graphic-context",
            b"PK\x03\x04" + bytes(60), b"\x1f\x8b\x08" + bytes(30), b"\x7fELF" + bytes(60), b"MZ" + bytes(60),
            b"\0asm\1\0\0\0", b"8BPS\0\1" + bytes(40), b"\0\0\0\x18ftypheic" + bytes(40), b"http://127.0.0.1/image.png",
            b"", b"\0", b"\xff", b"\xff\xd8", b"GIF", b"BM", b"RIFF", b"P6\n9 9\n255\n" + bytes(243), b"IM" * 500,
            struct.pack("<I", 0x04034B50), bytes(10_000),
        )
    )  # fmt: skip
