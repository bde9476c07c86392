"""Prompts to token ids, with the `tokenizers` library and the manifest's chat template."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from engine.errors import PlanCorrupt
from engine.plan.manifest import PromptFormat

TOKENIZER_FILE = "tokenizer/tokenizer.json"


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """Token ids of the rendered chat template, and the part of the prompt that they hold."""

    ids: tuple[int, ...]
    text: str  # the part of the prompt that was kept
    dropped: str  # the rest, cut at the model's limit; empty for nearly every prompt


class PromptTokenizer:
    """Renders the chat template around a prompt, tokenizes it, and cuts it at the model's limit.

    diffusers and DiffSynth cut the rendered text, so a prompt that is too long loses the end of the template as well.
    The tokenizer does the same, for the same image.
    """

    def __init__(self, directory: Path, prompt_format: PromptFormat) -> None:
        self._format = prompt_format
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
        except Exception as error:
            raise PlanCorrupt(f"{directory / TOKENIZER_FILE} is not a tokenizer: {error}; build again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Tokenize a prompt. It must be valid Unicode, which `ImageRequest.check` ensures."""
        encoding = self._tokenizer.encode(self._format.prefix + prompt + self._format.suffix)
        limit = self._format.max_tokens
        kept = self._kept(prompt, encoding.offsets, limit)
        return TokenizedPrompt(tuple(encoding.ids[:limit]), prompt[:kept], prompt[kept:])

    def _kept(self, prompt: str, offsets: list[tuple[int, int]], limit: int) -> int:
        """Return the number of characters of the prompt that the first `limit` tokens hold."""
        if len(offsets) <= limit:
            return len(prompt)
        end = offsets[limit - 1][1]  # of the last kept token in the rendered text
        # an accent that NFC merged into a letter has no token of its own, so it stays with its letter
        end = next((start for start, _ in offsets[limit:] if start >= end), end)
        return min(max(end - len(self._format.prefix), 0), len(prompt))
