"""Encoding of prompts through the cache. Knows no images."""

from engine.backends.memory import Readback, Tensor
from engine.pipeline import Pipeline
from engine.sampling.finite import is_finite
from engine.sampling.tokenizer import TokenizedPrompt
from engine.scheduler.prompt_cache import PromptCache, PromptKey


class CachedPromptEncoder:
    """A pipeline's prompt encoder and a cache in front of it."""

    def __init__(self, pipeline: Pipeline, cache: PromptCache) -> None:
        self._pipeline, self._memory, self._cache = pipeline, pipeline.memory, cache
        self._last: tuple[PromptKey, Readback] | None = None  # the prompt encoded last, not in the cache yet

    def encode(self, prompt: TokenizedPrompt, lora: str | None) -> Tensor:
        """Return [1, L, prompt_embeds_dim], valid until the next call.

        Args:
            lora: name of the LoRA that is applied now.
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
