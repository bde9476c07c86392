"""A prompt becomes token ids, by the `tokenizers` library and the chat template's text from the manifest."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from engine.errors import PlanCorrupt
from engine.plan.manifest import PromptFormat

TOKENIZER_FILE = "tokenizer/tokenizer.json"


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """Token ids of the whole chat turn, and what of the prompt they hold."""

    ids: tuple[int, ...]
    text: str  # the prompt as far as it was kept
    dropped: str  # its tail, cut at the model's limit; empty for nearly every prompt


class PromptTokenizer:
    """Renders the chat template around a prompt, tokenizes, and cuts the tail where the model's context ends.

    diffusers and DiffSynth cut the rendered text too, template and all, so a prompt that is too long loses its own
    tail and the template's; the same is done here for the same image.
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
        """The tokens of a prompt that is valid Unicode; `ImageRequest.check` has seen to it."""
        encoding = self._tokenizer.encode(self._format.prefix + prompt + self._format.suffix)
        limit = self._format.max_tokens
        kept = self._kept(prompt, encoding.offsets, limit)
        return TokenizedPrompt(tuple(encoding.ids[:limit]), prompt[:kept], prompt[kept:])

    def _kept(self, prompt: str, offsets: list[tuple[int, int]], limit: int) -> int:
        """How many characters of the prompt the first `limit` tokens hold."""
        if len(offsets) <= limit:
            return len(prompt)
        end = offsets[limit - 1][1]  # where the last kept token ends in the rendered text
        # an accent that NFC merged into a letter has no token of its own: it goes with its letter
        end = next((start for start, _ in offsets[limit:] if start >= end), end)
        return min(max(end - len(self._format.prefix), 0), len(prompt))
