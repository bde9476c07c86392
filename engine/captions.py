"""Encoded prompts, kept on the host: of many requests with one prompt, all but the first skip the prompt encoder."""

from collections import OrderedDict

from engine.noise import Array

CAPACITY = 256 << 20  # bytes; a caption of Z-Image-Turbo takes 0.5 to 8 MB


class CaptionCache:
    """Captions [1, L, D] by their token ids; those least recently used go first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.hits = self.misses = 0
        self._capacity, self._size = capacity, 0
        self._captions: OrderedDict[tuple[int, ...], Array] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> Array | None:
        caption = self._captions.get(ids)
        if caption is None:
            self.misses += 1
            return None
        self.hits += 1
        self._captions.move_to_end(ids)
        return caption

    def put(self, ids: tuple[int, ...], caption: Array) -> None:
        """Keeps the array itself, which must not change any more."""
        if caption.nbytes > self._capacity or ids in self._captions:
            return
        self._captions[ids] = caption
        self._size += caption.nbytes
        while self._size > self._capacity:
            self._size -= self._captions.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._captions.clear()
        self._size = 0
