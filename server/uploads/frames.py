"""Messages between the server and the decoder's process: JSON and binary parts over a pipe, after their lengths.

Only the standard library: the decoder's process imports nothing else than Pillow.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">IQ")  # bytes of the JSON, and of all parts together
READY = b"R"  # the process's first byte, once it is confined


def encode_frame(facts: Mapping[str, Any], parts: Sequence[bytes] = ()) -> Iterator[bytes]:
    """Yield the pieces of a frame, without copying its parts."""
    text = json.dumps({**facts, "lengths": [len(part) for part in parts]}).encode()
    yield LENGTHS.pack(len(text), sum(map(len, parts))) + text
    yield from parts


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], list[bytes]] | None:
    """Return the JSON and the parts of the next frame, or None at the end of the stream."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    facts = json.loads(stream.read(LENGTHS.unpack(lengths)[0]))
    return facts, [stream.read(length) for length in facts.pop("lengths")]
