"""The chat template of a checkpoint, as the text before and the text after the prompt.

With these the runtime needs no template engine. A template of another form is refused here.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine.errors import CheckpointError
from engine.plan.manifest import PromptFormat

MAX_TOKENS = 512  # tokens of the rendered text: max_sequence_length of DiffSynth's and diffusers' pipelines
PROBES = ("red circle", " two\nlines ", "{{ braces }}", "</think>", "红色的圆")
PLACEHOLDER = "\x00prompt\x00"


def read_prompt_format(folder: Path) -> PromptFormat:
    """Render the checkpoint's chat template for one user message, as Z-Image's pipelines do.

    Raises:
        CheckpointError: there is no template, or the template changes the prompt itself.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prefix, found, suffix = _render(tokenizer, PLACEHOLDER).partition(PLACEHOLDER)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"{folder} holds no tokenizer with a chat template: {error}") from error
    for probe in PROBES:
        if not found or _render(tokenizer, probe) != prefix + probe + suffix:
            raise CheckpointError(
                f"the chat template in {folder} must only add text around the prompt, but it altered {probe!r}"
            )
    return PromptFormat(prefix, suffix, MAX_TOKENS, tokenizer.pad_token_id or 0)


def _render(tokenizer: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return text
