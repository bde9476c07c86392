"""Files that were ordinary once: cut, flipped, spliced, with wrong lengths and checksums."""

import random
import struct

from benchmarks.hostile.parts import (
    WRITERS,
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


def truncated(rng: random.Random) -> bytes:
    data = ordinary(rng)
    return data[: rng.randrange(len(data))]


def flipped_bits(rng: random.Random) -> bytes:
    data = bytearray(ordinary(rng))
    for _ in range(rng.choice((1, 3, 20, 200))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def extreme_numbers(rng: random.Random) -> bytes:
    """Overwrite numbers in the first part of a file, where its sizes and lengths are."""
    data = bytearray(ordinary(rng))
    for _ in range(rng.randint(1, 4)):
        value = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\1", b"\xff\xff"))
        start = rng.randrange(4, min(len(data), 80))
        data[start : start + len(value)] = value
    return bytes(data)


def spliced(rng: random.Random) -> bytes:
    """Put a part of one file into another, of the same or another format."""
    one, other = ordinary(rng), ordinary(rng)
    start, end = sorted(rng.randrange(len(other)) for _ in range(2))
    at = rng.randrange(len(one))
    return one[:at] + other[start:end] + one[at if rng.random() < 0.5 else min(len(one), at + end - start) :]


def repeated(rng: random.Random) -> bytes:
    data = ordinary(rng)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 12, 300)))
    return data[:start] + data[start:end] * rng.randint(2, 300) + data[end:]


def random_bytes(rng: random.Random) -> bytes:
    starts = [ordinary(rng, kind)[: rng.choice((2, 4, 12, 40))] for kind in WRITERS]
    return rng.choice([b"", *starts]) + rng.randbytes(rng.choice((0, 1, 7, 100, 5000)))


def png_of_shuffled_chunks(rng: random.Random) -> bytes:
    """Shuffle, drop and double the chunks of a PNG."""
    header, *rest = png_chunks(written(picture(rng, "P"), "PNG", optimize=True))
    rest.append((b"tRNS", rng.randbytes(rng.randint(0, 300))))
    rng.shuffle(rest)
    return png([header, *rest[: rng.randint(0, len(rest))], *rng.choices(rest, k=rng.randint(0, 4))])


def png_with_wrong_checksums(rng: random.Random) -> bytes:
    data = bytearray(ordinary(rng, "PNG"))
    position = 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if rng.random() < 0.5:
            data[position + 8 + length] ^= 0xFF
        position += 12 + length
    return bytes(data)


def png_of_impossible_header(rng: random.Random) -> bytes:
    """Ask for depths, colour types, filters and interlacing that do not exist, or do not go together."""
    chunks = png_chunks(ordinary(rng, "PNG"))
    header = bytearray(chunks[0][1])
    for index in rng.sample(range(8, 13), rng.randint(1, 3)):
        header[index] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 16, 32, 255))
    return png([(b"IHDR", bytes(header)), *chunks[1:]])


def png_without_enough_data(rng: random.Random) -> bytes:
    """State more pixels than the data have."""
    chunks = png_chunks(ordinary(rng, "PNG"))
    return png([png_header(rng.randint(1, 3000), rng.randint(1, 3000)), *chunks[1:]])


def animated_png_of_wrong_frames(rng: random.Random) -> bytes:
    frames = [picture(rng).resize((24, 24)) for _ in range(3)]
    chunks = png_chunks(written(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    changed: list[Chunk] = []
    for kind, data in chunks:
        if kind in (b"acTL", b"fcTL", b"fdAT") and rng.random() < 0.6:
            data = bytes(rng.choice((0, 255, value)) for value in data)
        changed.append((kind, data))
    return png(changed)


def jpeg_of_shuffled_segments(rng: random.Random) -> bytes:
    segments = jpeg_segments(written(picture(rng), "JPEG", progressive=rng.random() < 0.5))
    rng.shuffle(segments)
    return jpeg(segments[: rng.randint(1, len(segments))] + rng.choices(segments, k=rng.randint(0, 5)))


def jpeg_of_another_process(rng: random.Random) -> bytes:
    """Call the frame arithmetic, lossless, hierarchical or extended, or change its precision and components."""
    segments = jpeg_segments(ordinary(rng, "JPEG"))
    for index, segment in enumerate(segments):
        if segment[1] in (0xC0, 0xC2):
            frame = bytearray(segment)
            frame[1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD))
            frame[rng.randrange(4, len(frame))] = rng.choice((0, 1, 2, 12, 17, 255))
            segments[index] = bytes(frame)
    return jpeg(segments)


def webp_of_wrong_chunks(rng: random.Random) -> bytes:
    """State another canvas than that of the image, wrong lengths, unknown and repeated chunks."""
    image = ordinary(rng, "WEBP")
    kind, data = image[12:16], image[20:]
    canvas = rng.choice((0, 1, 99, 16383, 2**24 - 1)).to_bytes(3, "little")
    extended = (b"VP8X", bytes([rng.randrange(256)]) + b"\0\0\0" + canvas + canvas)
    others = [
        (b"ALPH", rng.randbytes(30)),
        (b"ANIM", bytes(6)),
        (b"ANMF", rng.randbytes(60)),
        (b"ICCP", rng.randbytes(9)),
    ]
    chunks = [extended, *rng.sample(others, rng.randint(0, 4)), (kind, data), *rng.sample(others, rng.randint(0, 2))]
    file = bytearray(riff(chunks))
    if rng.random() < 0.5:
        file[4:8] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"))
    return bytes(file)


def gif_of_wrong_blocks(rng: random.Random) -> bytes:
    """Change code sizes, frames' places, block lengths, and the end."""
    data = bytearray(ordinary(rng, "GIF"))
    frame = data.index(b"\x2c", 13)
    for _ in range(rng.randint(1, 5)):
        data[min(len(data) - 1, frame + rng.randrange(14))] = rng.choice((0, 1, 8, 12, 13, 31, 127, 255))
    return bytes(data) + b"\x21\xff" * rng.choice((0, 1, 5000))


def bmp_of_wrong_header(rng: random.Random) -> bytes:
    """Change the header's fields: offsets, planes, bits per pixel, compression, colours."""
    data = bytearray(written(picture(rng, rng.choice(("RGB", "P", "1", "L"))), "BMP"))
    for _ in range(rng.randint(1, 3)):
        at = rng.choice((10, 14, 18, 22, 26, 28, 30, 34, 46))
        struct.pack_into("<I", data, at, rng.choice((0, 1, 2, 3, 4, 8, 16, 24, 32, 64, 40, 108, 124, 2**31, 2**32 - 1)))
    return bytes(data)
