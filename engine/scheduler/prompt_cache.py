"""A cache of encoded prompts on the host: a repeated prompt skips the prompt encoder."""

from collections import OrderedDict
from dataclasses import dataclass

from engine.array import Array

CAPACITY = 256 << 20  # bytes; a prompt of Z-Image-Turbo takes 0.5 to 8 MB


@dataclass(frozen=True, slots=True)
class PromptKey:
    """Key of an encoded prompt. A LoRA may change the prompt encoder too."""

    ids: tuple[int, ...]
    lora: str | None


class PromptCache:
    """Encoded prompts [1, L, D]; the least recently used are dropped first.

    Args:
        capacity: bytes.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.hits = self.misses = 0
        self._capacity, self._size = capacity, 0
        self._entries: OrderedDict[PromptKey, Array] = OrderedDict()

    def get(self, key: PromptKey) -> Array | None:
        """Return an encoded prompt, or None."""
        prompt_embeds = self._entries.get(key)
        if prompt_embeds is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return prompt_embeds

    def put(self, key: PromptKey, prompt_embeds: Array) -> None:
        """Keep an array, which must not change afterwards."""
        if prompt_embeds.nbytes > self._capacity or key in self._entries:
            return
        self._entries[key] = prompt_embeds
        self._size += prompt_embeds.nbytes
        while self._size > self._capacity:
            self._size -= self._entries.popitem(last=False)[1].nbytes
