"""Prompts to token ids, with the `tokenizers` library and the manifest's chat template."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from engine.errors import PlanCorrupt
from engine.plan.manifest import PromptFormat

TOKENIZER_FILE = "tokenizer/tokenizer.json"
CHARACTERS_PER_TOKEN = 2  # of the first attempt at a long prompt; doubled until there are enough tokens
MARGIN = 64  # tokens beyond the limit, so that the end of a cut prompt does not change the tokens before the limit


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """Token ids of the rendered chat template, and the part of the prompt that they hold."""

    ids: tuple[int, ...]
    text: str  # the part of the prompt that was kept
    dropped: str  # the rest, cut at the model's limit; empty for nearly every prompt


@dataclass(frozen=True, slots=True)
class TokenizedPrompts:
    """The prompts of one request.

    Attributes:
        prompts: the prompt and, with guidance, the negative prompt.
        seconds: time that it took to tokenize them.
    """

    prompts: tuple[TokenizedPrompt, ...]
    seconds: float


class PromptTokenizer:
    """Renders the chat template around a prompt, tokenizes it, and cuts it at the model's limit.

    diffusers and DiffSynth cut the rendered text, so a prompt that is too long loses the end of the template as well.
    The tokenizer does the same, for the same image, but reads only as much of the prompt as it needs: 32,000 emoji
    take 70 ms, their first 1,024 take 4 ms. This can change the tokens only inside a single letter with a thousand
    combining marks.
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
        limit = self._format.max_tokens
        encoding = self._encode(prompt, limit + MARGIN)
        kept = self._kept(prompt, encoding.offsets, limit)
        return TokenizedPrompt(tuple(encoding.ids[:limit]), prompt[:kept], prompt[kept:])

    def _encode(self, prompt: str, enough: int) -> Encoding:
        """Return the tokens of the rendered prompt, or of a part of it that has `enough` tokens."""
        length = CHARACTERS_PER_TOKEN * enough
        while length < len(prompt):
            encoding = self._tokenizer.encode(self._format.prefix + prompt[:length])
            if len(encoding) >= enough:
                return encoding
            length *= 2
        return self._tokenizer.encode(self._format.prefix + prompt + self._format.suffix)

    def _kept(self, prompt: str, offsets: list[tuple[int, int]], limit: int) -> int:
        """Return the number of characters of the prompt that the first `limit` tokens hold."""
        if len(offsets) <= limit:
            return len(prompt)
        end = offsets[limit - 1][1]  # of the last kept token in the rendered text
        # an accent that NFC merged into a letter has no token of its own, so it stays with its letter
        end = next((start for start, _ in offsets[limit:] if start >= end), end)
        return min(max(end - len(self._format.prefix), 0), len(prompt))
