"""Encoding of prompts through a cache on the host: a repeated prompt skips the prompt encoder. Knows no images."""

from collections import OrderedDict
from dataclasses import dataclass

from engine.array import Array
from engine.backends.memory import Readback, Tensor
from engine.pipeline import Pipeline
from engine.request import LoraChoice
from engine.sampling.finite import is_finite
from engine.sampling.tokenizer import TokenizedPrompt

CAPACITY = 256 << 20  # bytes; a prompt of Z-Image-Turbo takes 0.5 to 8 MB


@dataclass(frozen=True, slots=True)
class PromptKey:
    """Key of an encoded prompt. A LoRA may change the prompt encoder too."""

    ids: tuple[int, ...]
    lora: LoraChoice | None


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


class CachedPromptEncoder:
    """A pipeline's prompt encoder and a cache in front of it."""

    def __init__(self, pipeline: Pipeline, cache: PromptCache) -> None:
        self._pipeline, self._memory, self._cache = pipeline, pipeline.memory, cache
        self._last: tuple[PromptKey, Readback] | None = None  # the prompt encoded last, not in the cache yet

    def encode(self, prompt: TokenizedPrompt, lora: LoraChoice | None) -> Tensor:
        """Return [1, L, prompt_embeds_dim], valid until the next call.

        Args:
            lora: the LoRA that is applied now.
        """
        self.cache_last()
        key = PromptKey(prompt.ids, lora)
        cached = self._cache.get(key)
        if cached is not None:
            return self._memory.write("prompt_embeds", cached)
        prompt_embeds = self._pipeline.encode_prompt([prompt])
        self._last = key, self._memory.read(prompt_embeds)
        return prompt_embeds

    def cache_last(self) -> None:
        """Cache the prompt encoded last. Call this once its readback is over, or before the next prompt is encoded."""
        if self._last is not None:
            (key, readback), self._last = self._last, None
            values = readback.wait()
            if is_finite(values):
                self._cache.put(key, values.copy())
