"""From prompts to captions, by way of the cache. Knows no pictures."""

from engine.backends.memory import Reading, Tensor
from engine.pipeline import Pipeline, is_finite
from engine.sampling.tokenizer import TokenizedPrompt
from engine.scheduler.prompt_cache import CaptionCache, CaptionKey


class CaptionEncoder:
    """A pipeline's prompt encoder and a cache in front of it."""

    def __init__(self, pipeline: Pipeline, cache: CaptionCache) -> None:
        self._pipeline, self._memory, self._cache = pipeline, pipeline.memory, cache
        self._last: tuple[CaptionKey, Reading] | None = None  # encoded last, not yet in the cache

    def encode(self, prompt: TokenizedPrompt, lora: str | None) -> Tensor:
        """[1, L, caption_dim], valid until the next pass; `lora`: the one that is in the plans."""
        self.keep()
        key = CaptionKey(prompt.ids, lora)
        cached = self._cache.get(key)
        if cached is not None:
            return self._memory.write("caption", cached)
        caption = self._pipeline.encode_prompt([prompt])
        self._last = key, self._memory.read(caption)
        return caption

    def keep(self) -> None:
        """Caches the caption encoded last, now that waiting for it costs nothing, or its place is needed."""
        if self._last is not None:
            (key, reading), self._last = self._last, None
            values = reading.wait()
            if is_finite(values):
                self._cache.put(key, values.copy())
