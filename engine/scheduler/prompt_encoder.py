"""From prompts to prompts, by way of the cache. Knows no images."""

from engine.backends.memory import Reading, Tensor
from engine.pipeline import Pipeline, is_finite
from engine.sampling.tokenizer import TokenizedPrompt
from engine.scheduler.prompt_cache import PromptCache, PromptKey


class CachedPromptEncoder:
    """A pipeline's prompt encoder and a cache in front of it."""

    def __init__(self, pipeline: Pipeline, cache: PromptCache) -> None:
        self._pipeline, self._memory, self._cache = pipeline, pipeline.memory, cache
        self._last: tuple[PromptKey, Reading] | None = None  # encoded last, not yet in the cache

    def encode(self, prompt: TokenizedPrompt, lora: str | None) -> Tensor:
        """[1, L, prompt_embeds_dim], valid until the next pass; `lora`: the one that is in the plans."""
        self.keep()
        key = PromptKey(prompt.ids, lora)
        cached = self._cache.get(key)
        if cached is not None:
            return self._memory.write("prompt_embeds", cached)
        prompt_embeds = self._pipeline.encode_prompt([prompt])
        self._last = key, self._memory.read(prompt_embeds)
        return prompt_embeds

    def keep(self) -> None:
        """Caches the prompt encoded last, now that waiting for it costs nothing, or its place is needed."""
        if self._last is not None:
            (key, reading), self._last = self._last, None
            values = reading.wait()
            if is_finite(values):
                self._cache.put(key, values.copy())
