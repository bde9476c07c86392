"""Token ids equal those that diffusers gets from transformers."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer

from engine.sampling.tokenizer import TOKENIZER_FILE, PromptTokenizer
from export.checkpoint.prompt_format import read_prompt_format
from nano.tokenizer import ADDED_TOKENS, write_tokenizer

LIMIT = 512

PROMPTS = [
    "a red circle on a blue background",
    "一个红色的圆在蓝色的背景上",
    "海边的灯塔, at night, in the style of 葛饰北斋!",
    "🎨🖌️ a 👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "text that ends the turn <|im_end|>\n<|im_start|>assistant\n<think>\n</think>",
    "<|im_end|>",
    "cafe\u0301, e\u0301\u0327, \u1100\u1161",  # NFD, which the tokenizer composes
    "two\nlines\r\n\r\n  and a tab\t ",
    "  spaces around  ",
    "{{ braces }} {% if x %} \\n \x00 \u200b \ufeff",
    "it's 1234567 o'clock",
    "a red circle " * 1667,  # 5,000 words
    "🎨" * 400,  # four tokens each: the cut falls inside one
    "e\u0301" * 400,
    "e\u0301 " * 400,
    "a" * 5000,
    "🎨" * 32_000,
    " " * 31_999 + "a",
    "qzxwvk" * 5333,
    "e" + "\u0301\u0316" * 500 + " circle" * 4000,
    " " * 900 + "🎨" * 31_000,
]

words = st.text(st.sampled_from("abz019!,éñ圆🎨\u0301\u1100\u1161"), min_size=1, max_size=12) | st.sampled_from(
    ADDED_TOKENS
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    write_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer(folder, read_prompt_format(folder / "tokenizer"))


@pytest.fixture(scope="module")
def transformers_ids(folder: Path) -> Callable[[str], list[int]]:
    """Token ids as in diffusers' ZImagePipeline."""
    theirs = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def ids(prompt: str) -> list[int]:
        turn = [{"role": "user", "content": prompt}]
        text = theirs.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return theirs(text, truncation=True, max_length=LIMIT).input_ids

    return ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_token_ids_equal_transformers(
    tokenizer: PromptTokenizer, transformers_ids: Callable[[str], list[int]], prompt: str
) -> None:
    ours = tokenizer(prompt)
    assert list(ours.ids) == transformers_ids(prompt)
    assert ours.text + ours.dropped == prompt
    assert bool(ours.dropped) == (len(prompt) > 300)


@pytest.mark.parametrize("prompt", ["🎨" * 32_000, "a red circle " * 2400], ids=["emoji", "words"])
def test_only_the_part_of_a_long_prompt_that_is_used_is_tokenized(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    class Watched:
        def encode(self, text: str) -> Encoding:
            lengths.append(len(text))
            return original.encode(text)

    lengths: list[int] = []
    original = tokenizer._tokenizer
    monkeypatch.setattr(tokenizer, "_tokenizer", Watched())
    assert len(tokenizer(prompt).ids) == LIMIT
    assert sum(lengths) < 20 * LIMIT  # of 31,200 to 32,000 characters


@settings(deadline=None)
@given(st.text(min_size=1, max_size=400).filter(str.strip) | st.lists(words, min_size=1, max_size=300).map(" ".join))
@example("x" * 496)
def test_token_ids_of_any_text_equal_transformers(
    tokenizer: PromptTokenizer, transformers_ids: Callable[[str], list[int]], prompt: str
) -> None:
    ours = tokenizer(prompt)
    assert list(ours.ids) == transformers_ids(prompt)
    assert ours.text + ours.dropped == prompt
    if len(ours.ids) < LIMIT:
        assert ours.dropped == ""


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=8))
def test_kept_text_is_the_text_of_the_ids(tokenizer: PromptTokenizer, folder: Path, few: list[str]) -> None:
    """Byte-level tokens decode without loss. The last letter counts as kept if the ids hold a part of it."""
    ours = tokenizer(" ".join(few * 1000))
    assert len(ours.ids) == LIMIT
    turn = unicodedata.normalize("NFC", "<|im_start|>user\n" + ours.text)
    decoded = Tokenizer.from_file(str(folder / TOKENIZER_FILE)).decode(ours.ids, skip_special_tokens=False)
    assert (turn[:-1] if decoded.endswith("\ufffd") else turn) == decoded.rstrip("\ufffd")


@pytest.mark.parametrize("letter", ["e\u0301", "\u1100\u1161", "🎨", "圆"])
@pytest.mark.parametrize("before", ["", "a", "ab", "a b"])
def test_cut_never_splits_a_letter(tokenizer: PromptTokenizer, before: str, letter: str) -> None:
    """The dropped text never begins with half a letter, even if the ids end in one."""
    ours = tokenizer(before + letter * 600)
    assert ours.text == before + letter * ((len(ours.text) - len(before)) // len(letter))
    assert ours.dropped.startswith(letter)
