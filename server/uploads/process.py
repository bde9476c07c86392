"""The decoder's process: reads uploads from its standard input and writes what they become to its standard output.

Hostile files may make it crash, hang or run out of memory: it has no secrets in its environment, can open neither files
nor connections, and is bounded in memory and CPU time. Beside the standard library it imports only Pillow.
"""

import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from PIL import Image

from engine.errors import InvalidRequest
from engine.images.decode import decode
from engine.images.header import DecodeLimits
from engine.images.preparation import Preparation
from engine.images.prepare import prepare
from engine.init_image import InitImage
from engine.size import Size, SizeLimits, SizeRange
from server.allocator import give_back_large_blocks
from server.uploads.frames import READY, encode_frame, read_frame

PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
MAX_MESSAGE = 1000  # characters


def main(memory: int, seconds: float) -> None:
    """Prepare one upload after the other until the input ends.

    Args:
        memory: bytes of address space.
        seconds: CPU time of one upload; the process is ended by SIGPROF when it takes longer.
    """
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    give_back_large_blocks()
    Image.preinit()  # imports Pillow's other modules, as those of `engine.images.decode.PLUGINS`
    confine(memory)
    _write(sink, READY)
    while (job := read_frame(source)) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process
        try:
            answer = _answer(*job, sink)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:MAX_MESSAGE]
            _write(sink, *encode_frame({"type": "crashed", "message": reason}))
            raise
        signal.setitimer(signal.ITIMER_PROF, 0)  # before the answer: the signal must not end the next upload
        _write(sink, *answer)
        del job, answer
        gc.collect()


def confine(memory: int) -> None:
    """Take from this process what it does not need: files, connections, memory without bound, child processes.

    The limit of child processes does not hold for root.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # may go to the whole process group; the server closes the input
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stderr.fileno())  # libraries write there, as much as a file makes them
    os.close(nothing)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, 0)  # open ones stay usable


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _answer(facts: dict[str, Any], parts: Sequence[bytes], sink: BinaryIO) -> list[bytes]:
    """Return the frame of what an upload becomes, or of why it is refused. Any other error ends this process.

    Args:
        sink: told when the mask's turn comes.
    """
    preparation = preparation_of(facts["preparation"])
    limits = DecodeLimits(**facts["limits"])
    param = preparation.image_param
    try:
        image, notes = decode(parts[0], param, limits)
        gc.collect()  # Pillow's files are in reference cycles, and hold hundreds of megabytes
        mask = None
        if len(parts) > 1:
            param = preparation.mask_param
            _write(sink, *encode_frame({"type": "decoding", "param": param}))
            mask, more = decode(parts[1], param, limits, is_mask=True)
            gc.collect()
            notes += more
        init_image = prepare(image, mask, preparation, notes)
        return list(encode_frame(*_prepared(replace(init_image, sha256=init_image.digest()))))
    except InvalidRequest as error:
        return list(encode_frame({"type": "refused", "message": str(error)[:MAX_MESSAGE], "param": error.param}))
    except MemoryError:
        return list(encode_frame({"type": "out_of_memory", "param": param}))


def preparation_of(facts: dict[str, Any]) -> Preparation:
    """Return the preparation that `dataclasses.asdict` was applied to."""
    sizes = facts.pop("limits")
    ranges = tuple(SizeRange(*each) for each in sizes["ranges"])
    return Preparation(SizeLimits(sizes["multiple"], ranges, Size(*sizes["default"])), **facts)


def _prepared(image: InitImage) -> tuple[dict[str, Any], list[bytes]]:
    facts: dict[str, Any] = {"type": "prepared", "size": image.size, "notes": image.notes, "sha256": image.sha256}
    parts = [image.pixels]
    if image.mask is not None:
        parts.append(image.mask)
    if image.paste is not None:
        facts["paste"] = {"size": image.paste.size, "box": image.paste.box}
        parts += [image.paste.pixels, image.paste.mask]
    return facts, parts


def _write(sink: BinaryIO, *pieces: bytes) -> None:
    for piece in pieces:
        sink.write(piece)
    sink.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
