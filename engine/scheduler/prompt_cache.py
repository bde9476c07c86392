"""Encoded prompts, kept on the host: of many requests with one prompt, all but the first skip the prompt encoder."""

from collections import OrderedDict
from dataclasses import dataclass

from engine.sampling.noise import Array

CAPACITY = 256 << 20  # bytes; a caption of Z-Image-Turbo takes 0.5 to 8 MB


@dataclass(frozen=True, slots=True)
class CaptionKey:
    """What a caption depends on: a LoRA may change the prompt encoder too."""

    ids: tuple[int, ...]
    lora: str | None


class CaptionCache:
    """Captions [1, L, D]; those least recently used go first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.hits = self.misses = 0
        self._capacity, self._size = capacity, 0
        self._captions: OrderedDict[CaptionKey, Array] = OrderedDict()

    def get(self, key: CaptionKey) -> Array | None:
        caption = self._captions.get(key)
        if caption is None:
            self.misses += 1
            return None
        self.hits += 1
        self._captions.move_to_end(key)
        return caption

    def put(self, key: CaptionKey, caption: Array) -> None:
        """Keeps the array itself, which must not change any more."""
        if caption.nbytes > self._capacity or key in self._captions:
            return
        self._captions[key] = caption
        self._size += caption.nbytes
        while self._size > self._capacity:
            self._size -= self._captions.popitem(last=False)[1].nbytes
