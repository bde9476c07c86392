"""A byte-level BPE tokenizer in Qwen's format, trained on the captions' words and a few lines when it is written."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, pre_tokenizers, trainers

from nano.captions import vocabulary

BYTE_LEVEL_TOKENS = 720  # 256 bytes and 464 merges
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = (*SPECIAL_TOKENS, "<think>", "</think>")
QWEN_WORDS = (  # pre-tokenizer pattern of Qwen 2 and 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_WORDS = ("user", "assistant") * 20
CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role + '\n' + turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER_TEXT = """a red circle on a blue background, a green square above a yellow triangle, a bright arrow
two white stars and three black rings to the left of an orange diamond, purple, pink, brown, grey, cyan, gold
a large cross below a striped heart, a dark hexagon, a small crescent, a photo of an old lighthouse by the sea
mountain, forest, river, bridge, street, market, garden, temple, city, desert, at night, in the morning light
蓝色背景上的红色圆形,黄色三角形上方的绿色正方形,白色星星,黑色圆环,紫色,橙色,灰色
海边的灯塔,山,森林,河流,桥,街道,夜晚的城市,雪中的寺庙,一只猫和一只狗"""


def write_tokenizer(folder: Path) -> None:
    """Train the tokenizer and write its files to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    added = {str(token.pop("id")): token for token in json.loads(tokenizer.to_str())["added_tokens"]}
    content = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt


def train_tokenizer() -> tokenizers.Tokenizer:
    """Train the tokenizer; the result is always the same."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    words = pre_tokenizers.Split(tokenizers.Regex(QWEN_WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_LEVEL_TOKENS, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    # single words instead of sentences: a token is then a word, never "red circle"
    tokenizer.train_from_iterator([*CHAT_WORDS, *vocabulary() * 20, TOKENIZER_TEXT], trainer)
    for token in ADDED_TOKENS:
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in SPECIAL_TOKENS)])
    return tokenizer
