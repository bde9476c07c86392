"""Bounds on uploads."""

from dataclasses import dataclass, field

from engine.images.header import DecodeLimits

MAX_UPLOAD = 20 << 20  # bytes of a file, unless a server is told otherwise


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Bounds on uploads and on the process that decodes them.

    Attributes:
        file: bounds on each file.
        cpu_seconds: CPU time for decoding an image with its mask and preparing both: where a CPU is free, nothing takes
            more than two seconds. 40 million pixels take 0.7 s as a PNG, and 1.6 s as a WebP with alpha.
        seconds: wall time for the same, where the CPUs are busy with images.
        memory: bytes of address space of the process; 40 million pixels with alpha and such a mask take 1 GB.
        waiting: uploads that may wait for the process; whoever brings them bounds their bytes.
        patience: seconds that an upload may wait; after that, it is refused when its turn comes.
        idle: seconds without uploads after which the process is ended.
        start: seconds for its start.
    """

    file: DecodeLimits = field(default_factory=DecodeLimits)
    cpu_seconds: float = 1.8
    seconds: float = 4.0
    memory: int = 1_500_000_000
    waiting: int = 64
    patience: float = 10.0
    idle: float = 60.0
    start: float = 20.0
