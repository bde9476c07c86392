"""The file of kernels that TensorRT-RTX has compiled on this GPU.

TensorRT-RTX checks GPU, driver and version when it reads the file. Knows a cache and a file; not contexts.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

from engine.backends.tensorrt.errors import Refusals
from engine.files import whole_file

log = logging.getLogger(__name__)


class KernelCache:
    """A runtime cache and its file.

    Args:
        cache: an IRuntimeCache; it must exist as long as contexts that use it.

    Attributes:
        is_used: True if a context had a new shape since the last `save`, so that kernels may have been compiled.
    """

    def __init__(self, file: Path, cache: Any, refusals: Refusals) -> None:
        self.cache, self.is_used = cache, False
        self._file, self._refusals = file, refusals
        self._written = b""  # SHA-256 of what is in the file
        self._read()

    def save(self) -> None:
        """Write the file if there are new kernels. A file that cannot be written only costs the next start time."""
        self.is_used = False
        compiled = self.cache.serialize()  # a copy
        if compiled is None:
            log.warning("kernels were not cached and will be compiled again next time: %s", self._refusals.take_words())
            return
        digest = hashlib.sha256(compiled).digest()
        if digest == self._written:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._file) as file:
                file.write(compiled)
        except OSError as error:
            log.warning("kernels were not cached and will be compiled again next time: %s", error)
        else:
            self._written = digest

    def _read(self) -> None:
        try:
            if not self._file.is_file():
                return
            compiled = self._file.read_bytes()
        except OSError as error:
            log.warning("cannot read the kernel cache; compiling again: %s", error)
            return
        if self.cache.deserialize(compiled):
            self._written = hashlib.sha256(compiled).digest()
        else:
            words = self._refusals.take_words()
            log.info("kernel cache %s is from another GPU or TensorRT-RTX; compiling again: %s", self._file, words)
