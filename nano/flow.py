"""Training of the text encoder and the transformer by flow matching over the autoencoder's latents.

The text encoder first learns to paraphrase captions as a language model; then both models train together. They run
through the forward passes of the exported graphs (`export.graphs.denoiser`, `export.graphs.prompt_encoder`), so
training and export agree, and a batch of equal size needs no mask.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from diffsynth.models.z_image_dit import ZImageDiT
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3Config, Qwen3ForCausalLM

from engine.plan.manifest import padded
from export.checkpoint.models import Model
from export.graphs.denoiser import Denoiser
from export.graphs.layers import transformer_block
from export.graphs.prompt_encoder import PromptEncoder
from nano.captions import caption
from nano.images import CAPTION_TOKENS, Latents
from nano.layout import CheckpointSizes, text_encoder_config, transformer_config
from nano.scenes import training_scene
from nano.training import Stage, optimizers, train

SHIFT = 3.0  # shift of the schedule for sampling
TEXT_RATE = 0.2  # share of the learning rate for the text encoder, which is already trained on captions
OUTER_LAYERS = (
    *("embed_tokens.weight", "lm_head.weight", "pad_token", "adaLN_modulation.0.weight", "adaLN_modulation.1.weight"),
    *("all_x_embedder.2-1.weight", "all_final_layer.2-1.linear.weight"),
)
THING_WEIGHT = 8.0  # added to the background's loss weight of 1
IGNORED = -100  # target that cross entropy ignores

Graph = Callable[..., Tensor]


class Painter(nn.Module):
    """Text encoder and transformer, with the graphs that run them."""

    def __init__(self, sizes: CheckpointSizes, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = text_encoder_config(sizes)
        self.language_model: Any = Qwen3ForCausalLM(Qwen3Config(**config))
        self.transformer: Any = ZImageDiT(**transformer_config(sizes))
        _initialise(self.transformer)
        self.tokenizer = tokenizer
        text, image = self.language_model.model, self.transformer
        self._models = (Model(text, config, {}), Model(image, transformer_config(sizes), {}))

    def graphs(self, compiled: bool = False) -> tuple[Graph, Graph]:
        """Make a PromptEncoder and a Denoiser.

        They are not attributes, because graphs have no parameters of their own and must not become submodules.
        """
        text, image = self._models
        if compiled:
            return _compiled(PromptEncoder(text, image, "fp32")), Denoiser(image, "fp32", _compiled(transformer_block))
        return PromptEncoder(text, image, "fp32"), Denoiser(image, "fp32")

    def tokens(self, captions: Sequence[str], answers: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize captions, and answers if given, in the chat template.

        Returns:
            Ids [B, L], padded on the right to a multiple of 32, and lengths [B].
        """
        texts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in captions]
        if answers is not None:
            texts = [f"{text}{answer}<|im_end|>" for text, answer in zip(texts, answers, strict=True)]
        ids = [torch.tensor(encoding.ids) for encoding in self.tokenizer.encode_batch(texts)]
        lengths = torch.tensor([len(sample) for sample in ids])
        table = torch.zeros(len(ids), padded(int(lengths.max())), dtype=torch.int64)
        for row, sample in enumerate(ids):
            table[row, : len(sample)] = sample
        return table, lengths


def train_reader(stage: Stage, painter: Painter, folder: Path, device: torch.device) -> list[float]:
    """Train the language model to answer a caption with another caption of the same scene, in either language."""
    model = painter.language_model

    def loss_of(rng: Random, _step: int) -> Tensor:
        scenes = [training_scene(rng) for _ in range(stage.batch)]
        captions, answers = ([caption(s, rng.choice(("en", "zh")), rng) for s in scenes] for _ in range(2))
        _, caption_lengths = painter.tokens(captions)
        ids, lengths = painter.tokens(captions, answers)
        position = torch.arange(ids.shape[1])[None]
        targets = ids.masked_fill((position < caption_lengths[:, None]) | (position >= lengths[:, None]), IGNORED)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids.to(device)).logits
        return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten().to(device))

    return train(
        stage, {"language_model": model}, optimizers(model, stage.learning_rate, OUTER_LAYERS), loss_of, folder
    )


def train_painter(
    stage: Stage, painter: Painter, latents: Sequence[Latents], folder: Path, device: torch.device, compiled: bool
) -> list[float]:
    """Train both models to predict the velocity from image to noise, at noise levels spread like the schedule's."""
    groups = ((painter.transformer, 1.0), (painter.language_model.model, TEXT_RATE))
    steppers = [o for model, share in groups for o in optimizers(model, share * stage.learning_rate, OUTER_LAYERS)]
    loss_of = flow_loss(stage, painter, latents, device, compiled)
    return train(stage, {"painter": painter}, steppers, loss_of, folder)


def flow_loss(
    stage: Stage, painter: Painter, latents: Sequence[Latents], device: torch.device, compiled: bool = False
) -> Callable[[Random, int], Tensor]:
    """Return the loss function: squared error of the velocity over a batch of one size, with a noise level per sample.

    The error weighs more at things, which cover a tenth of an image. Where noise hides the size of a thing, this
    favours larger things. Attention uses the unfused kernel: on these short sequences the gradient of the fused kernel
    takes a CPU eight times longer.
    """
    encode_prompt, denoise = painter.graphs(compiled)

    def loss_of(rng: Random, _step: int) -> Tensor:
        group = rng.choice(latents)
        height, width = (8 * side for side in group.values.shape[2:])
        chosen = [rng.randrange(len(group.scenes)) for _ in range(stage.images(height, width))]
        captions = [caption(group.scenes[i], rng.choice(("en", "zh")), rng) for i in chosen]
        ids, lengths = painter.tokens(captions)
        assert ids.shape[1] == CAPTION_TOKENS, f"captions have {ids.shape[1]} tokens, tables are for {CAPTION_TOKENS}"
        clean = group.values[chosen].to(device).float()
        noise = torch.randn_like(clean)
        uniform = (torch.arange(len(chosen), device=device) + torch.rand(len(chosen), device=device)) / len(chosen)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noisy = clean + sigma[:, None, None, None] * (noise - clean)
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            embedded = encode_prompt(ids.to(device), lengths.to(device))
            velocity = denoise(noisy, sigma, sigma + 1, embedded, *group.rope) - noisy  # one Euler step of length 1
        weight = 1 + THING_WEIGHT * group.things[chosen].to(device)
        return F.mse_loss(velocity, noise - clean, reduction="none").mul(weight).mean()

    return loss_of


def _compiled(function: Graph) -> Graph:
    """Compile a function per batch size. The attention kernel is chosen inside, since the caller's choice is lost."""

    def run(*inputs: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return function(*inputs)

    compiled: Graph = torch.compile(run, dynamic=False, recompile_limit=64)  # type: ignore[call-overload]  # not in its stubs
    return compiled


def _initialise(transformer: Any) -> None:
    """Initialise the output to zero, blocks with modulation to the identity, and pad tokens, which were not set."""
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:
            nn.init.normal_(parameter, std=0.02)
        elif "adaLN_modulation" in name or "all_final_layer.2-1.linear" in name:
            nn.init.zeros_(parameter)
