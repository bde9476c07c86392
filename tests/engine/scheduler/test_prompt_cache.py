"""Encoded prompts are kept within a limit of bytes."""

import numpy as np

from engine.scheduler.prompt_cache import PromptCache, PromptKey


def test_cache_drops_the_least_recently_used_prompt() -> None:
    cache = PromptCache(capacity=3 * 400)
    keys = [PromptKey((number,), None) for number in range(5)]
    for key in keys[:3]:
        cache.put(key, np.zeros(100, np.float32))
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], np.zeros(100, np.float32))
    assert [cache.get(key) is not None for key in keys[:4]] == [True, False, True, True]
    cache.put(keys[4], np.zeros(301, np.float32))  # larger than the whole
    assert cache.get(keys[4]) is None and cache.get(keys[3]) is not None
