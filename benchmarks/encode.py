"""Time and file size of PNG, JPEG and WebP encoders on one CPU thread.

Images are scikit-image's photographs, scaled and with a little noise, as a diffusion model leaves it, and
z-image-nano's contact sheet. Encoders alternate, so that a slow phase of the machine affects all of them. Encoders of
optional libraries are left out if the library is not installed.
"""

import argparse
import importlib
import io
import statistics
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from benchmarks.harness.arguments import count
from benchmarks.harness.pixels import Pixels
from benchmarks.harness.report import finish
from engine.images.encode import Deflate, encode, png
from engine.request import ImageFormat

Encoder = Callable[[Pixels], bytes]
Figures = dict[str, Any]

SIZES = (1024, 512)  # pixels, squares
PHOTOGRAPHS = ("astronaut", "coffee", "rocket")
CONTACT_SHEET = "contact sheet"
NOISE = 1.0  # standard deviation, of 255
SEED = 7
STRATEGIES = {"filtered": zlib.Z_FILTERED, "huffman": zlib.Z_HUFFMAN_ONLY, "rle": zlib.Z_RLE, "fixed": zlib.Z_FIXED}
REPEATED = 5  # measurements of how long an encoder holds the GIL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=count, default=15, metavar="N", help="Runs per image (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=count,
        action="append",
        metavar="PIXELS",
        help=f"Side of the square images, repeatable (default: {', '.join(map(str, SIZES))})",
    )


def run(args: argparse.Namespace) -> None:
    found = encoders()
    sizes: dict[str, dict[str, Figures]] = {}
    for size in args.size or SIZES:
        generated = photographs(size)
        require_lossless(found, generated)
        sizes[f"{size}x{size}"] = measure(found, generated, args.runs)
        _print_size(size, sizes[f"{size}x{size}"])
    finish("encode", {"runs": args.runs, "sizes": sizes})


def photographs(size: int) -> dict[str, Pixels]:
    """Return the test images by name, [size, size, 3] each. The contact sheet is tiled instead of scaled."""
    found = {name: _photograph(name, size) for name in PHOTOGRAPHS}
    sheet = Path(__file__).parent.parent / "docs" / "contact-sheet.png"
    with Image.open(sheet) as image:
        found[CONTACT_SHEET] = np.tile(np.asarray(image.convert("RGB")), (2, 1, 1))[:size, :size]
    return found


def _photograph(name: str, size: int) -> Pixels:
    from skimage import data

    pixels = getattr(data, name)()
    side = min(pixels.shape[:2])
    square = Image.fromarray(pixels[:side, :side]).resize((size, size), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(SEED).normal(0, NOISE, (size, size, 3))
    return np.clip(np.rint(np.asarray(square) + noise), 0, 255).astype(np.uint8)


def encoders() -> dict[str, Encoder]:
    """Return the encoders by name, zimage-trt's first. Names other than JPEG... and WebP... are PNG encoders."""
    found: dict[str, Encoder] = {"zimage-trt": encode}
    for level in (0, 1, 2, 3, 6):
        found[f"Pillow, level {level}"] = partial(_pillow, kind="PNG", compress_level=level)
    for name, strategy in STRATEGIES.items():
        found[f"Pillow, level 1, {name}"] = partial(_pillow, kind="PNG", compress_level=1, compress_type=strategy)
    found |= {name: encoder() for name, (module, encoder) in _OTHERS.items() if find_spec(module)}
    for quality in (100, 80):
        found[f"JPEG {quality}"] = partial(encode, image_format=ImageFormat("jpeg", quality))
        for method in (0, 2, 4):
            found[f"WebP {quality}, method {method}"] = partial(_pillow, kind="WEBP", quality=quality, method=method)
    return found


def _pillow(pixels: Pixels, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _png(deflate: Deflate) -> Encoder:
    """Return zimage-trt's PNG encoder with another deflate implementation."""
    return partial(png, text={}, deflate=deflate)


def _isal(level: int) -> Encoder:
    return _png(partial(importlib.import_module("isal.isal_zlib").compress, level=level))


def _zlib_ng(level: int, strategy: int) -> Encoder:
    library = importlib.import_module("zlib_ng.zlib_ng")

    def compress(rows: Any) -> bytes:
        stream = library.compressobj(level, library.DEFLATED, 15, 9, strategy)
        return cast(bytes, stream.compress(rows) + stream.flush())

    return _png(compress)


def _libdeflate() -> Encoder:
    library = importlib.import_module("deflate")
    return _png(lambda rows: library.zlib_compress(rows, 1))


def _opencv() -> Encoder:
    library = importlib.import_module("cv2")
    options = [library.IMWRITE_PNG_COMPRESSION, 1, library.IMWRITE_PNG_STRATEGY, library.IMWRITE_PNG_STRATEGY_RLE]
    return lambda pixels: cast(bytes, library.imencode(".png", pixels[:, :, ::-1], options)[1].tobytes())


def _imagecodecs(codec: str) -> Encoder:
    return partial(getattr(importlib.import_module("imagecodecs"), f"{codec}_encode"), level=1)


_OTHERS: dict[str, tuple[str, Callable[[], Encoder]]] = {
    "isal, level 0": ("isal", partial(_isal, 0)),
    "isal, level 2": ("isal", partial(_isal, 2)),
    "isal, level 3": ("isal", partial(_isal, 3)),
    "zlib-ng, level 1": ("zlib_ng", partial(_zlib_ng, 1, zlib.Z_DEFAULT_STRATEGY)),
    "zlib-ng, level 1, rle": ("zlib_ng", partial(_zlib_ng, 1, zlib.Z_RLE)),
    "libdeflate, level 1": ("deflate", _libdeflate),
    "OpenCV, level 1, rle": ("cv2", _opencv),
    "imagecodecs, libpng, level 1": ("imagecodecs", partial(_imagecodecs, "png")),
    "imagecodecs, libspng, level 1": ("imagecodecs", partial(_imagecodecs, "spng")),
}


def measure(found: Mapping[str, Encoder], generated: Mapping[str, Pixels], runs: int) -> dict[str, Figures]:
    """Measure each encoder: median seconds and bytes by image, and the longest time that it holds the GIL."""
    taken: dict[str, dict[str, list[float]]] = {name: {title: [] for title in generated} for name in found}
    for run in range(runs + 1):
        for title, pixels in generated.items():
            for name, encoder in found.items():
                seconds = _seconds(encoder, pixels)
                if run:  # the first run warms up
                    taken[name][title].append(seconds)
    first = next(iter(generated.values()))
    return {
        name: {
            "seconds": {title: statistics.median(times) for title, times in taken[name].items()},
            "bytes": {title: len(encoder(pixels)) for title, pixels in generated.items()},
            "gil_held_s": statistics.median(_longest_hold(encoder, first) for _ in range(REPEATED)),
        }
        for name, encoder in found.items()
    }


def _seconds(encoder: Encoder, pixels: Pixels) -> float:
    started = time.perf_counter()
    encoder(pixels)
    return time.perf_counter() - started


def _longest_hold(encoder: Encoder, pixels: Pixels) -> float:
    """Return the longest time in seconds for which the encoder blocks another thread, such as an event loop."""
    thread = threading.Thread(target=encoder, args=(pixels,))
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while thread.is_alive():
        time.sleep(1e-4)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


def _print_size(size: int, measured: Mapping[str, Figures]) -> None:
    print(f"{size}x{size}: ms and kB of photographs (mean), ms and kB of the contact sheet, longest GIL hold in ms")
    width = max(map(len, measured))
    for name, row in measured.items():
        photographs = [statistics.mean(row[key][title] for title in PHOTOGRAPHS) for key in ("seconds", "bytes")]
        sheet = [row[key][CONTACT_SHEET] for key in ("seconds", "bytes")]
        cells = [f"{seconds * 1e3:7.1f} {size / 1e3:6.0f}" for seconds, size in (photographs, sheet)]
        print(f"  {name.ljust(width)} {'   '.join(cells)}   {row['gil_held_s'] * 1e3:5.1f}")
    print(flush=True)


def require_lossless(found: Mapping[str, Encoder], generated: Mapping[str, Pixels]) -> None:
    """Raise RuntimeError if a PNG encoder changes an image, or any encoder its shape."""
    for name, encoder in found.items():
        for title, pixels in generated.items():
            decoded = np.asarray(Image.open(io.BytesIO(encoder(pixels))))
            exact = np.array_equal(decoded, pixels)
            if decoded.shape != pixels.shape or not (exact or name.startswith(("JPEG", "WebP"))):
                raise RuntimeError(f"{name} has changed the image {title}")
