"""Hostile image files of all kinds, from a seed."""

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks.hostile import bombs, damage, oddities

Outcome = Literal["prepared", "refused"]

DAMAGED = (
    damage.truncated,
    damage.flipped_bits,
    damage.extreme_numbers,
    damage.spliced,
    damage.repeated,
    damage.random_bytes,
    damage.png_of_shuffled_chunks,
    damage.png_with_wrong_checksums,
    damage.png_of_impossible_header,
    damage.png_without_enough_data,
    damage.animated_png_of_wrong_frames,
    damage.jpeg_of_shuffled_segments,
    damage.jpeg_of_another_process,
    damage.webp_of_wrong_chunks,
    damage.gif_of_wrong_blocks,
    damage.bmp_of_wrong_header,
)
BOMBS = (
    bombs.png_of_text_bombs,
    bombs.png_of_many_chunks,
    bombs.gif_of_many_frames,
    bombs.jpeg_of_many_markers,
    bombs.exif_bomb,
    bombs.profile_bomb,
)
BOMBS_OF_SOME_SIZE = (
    bombs.png_of_many_pixels,
    bombs.animated_png_of_many_frames,
    bombs.gif_of_many_pixels,
    bombs.webp_of_many_pixels,
    bombs.webp_of_a_large_canvas,
    bombs.bmp_of_many_pixels,
    bombs.jpeg_of_many_scans,
)
IMAGES = (
    oddities.turned,
    oddities.print_colours,
    oddities.sixteen_bits,
    oddities.few_bits,
    oddities.palette,
    oddities.interlaced,
    oddities.transparent,
    oddities.tiny_or_thin,
    oddities.animated,
    oddities.several_pictures,
    oddities.followed_by_another_file,
)
NO_IMAGES = (oddities.of_another_kind, bombs.jpeg_beyond_the_limit)


@dataclass(frozen=True, slots=True)
class HostileFile:
    """A file, the name of its kind, and what must become of it; None if that may be either."""

    kind: str
    data: bytes
    expected: Outcome | None


Maker = Callable[[random.Random], bytes]


def hostile_files(count: int, seed: int = 0, pixels: int = 40_000_000) -> Iterator[HostileFile]:
    """Yield files of all kinds in turn. The same seed gives the same files.

    Args:
        pixels: the largest area that the reader accepts.
    """
    kinds: list[tuple[str, Maker, Outcome | None]] = []
    kinds += [(make.__name__, make, None) for make in (*DAMAGED, *BOMBS)]
    kinds += [(make.__name__, partial(make, pixels=pixels), None) for make in BOMBS_OF_SOME_SIZE]
    kinds += [(bombs.png_beyond_the_limit.__name__, partial(bombs.png_beyond_the_limit, pixels=pixels), "refused")]
    kinds += [(make.__name__, make, "prepared") for make in IMAGES]
    kinds += [(make.__name__, make, "refused") for make in NO_IMAGES]
    for index in range(count):
        name, make, expected = kinds[index % len(kinds)]
        yield HostileFile(name, make(random.Random(f"{seed} {index}")), expected)


def main(count: int, seed: int) -> None:
    """Write the files to stdout, each after a line of JSON: its kind, what must become of it, and its length.

    For a program that measures its own memory: making bombs takes hundreds of megabytes.
    """
    for file in hostile_files(count, seed):
        line = json.dumps([file.kind, file.expected, len(file.data)])
        sys.stdout.buffer.write(line.encode() + b"\n" + file.data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
