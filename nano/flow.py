"""Trains the text encoder to read and, with the transformer, to draw: flow matching over the autoencoder's latents.

The text encoder first learns, as a language model, to say a caption again in other words; then both learn together.
The models are run by the graphs' own forward passes (`export.graphs.denoiser`, `export.graphs.prompt_encoder`), so
what is trained is what is exported, and a batch of equal size needs no mask.
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
from nano.images import CAPTION, Latents
from nano.layout import CheckpointSizes, text_encoder_config, transformer_config
from nano.scenes import training_scene
from nano.training import Stage, optimizers, train

SHIFT = 3.0  # of the schedule that the model will be sampled with
TEXT_RATE = 0.2  # of the learning rate, for the text encoder that already reads
OUTER_LAYERS = (
    *("embed_tokens.weight", "lm_head.weight", "pad_token", "adaLN_modulation.0.weight", "adaLN_modulation.1.weight"),
    *("all_x_embedder.2-1.weight", "all_final_layer.2-1.linear.weight"),
)
THING_WEIGHT = 8.0  # added to the weight 1 of the background
IGNORED = -100  # a target that cross entropy leaves out

Graph = Callable[..., Tensor]


class Painter(nn.Module):
    """The text encoder and the transformer, and the graphs that run them."""

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
        """PromptEncoder and Denoiser, made anew: a graph owns no parameters and must not be counted as a submodule."""
        text, image = self._models
        if compiled:
            return _compiled(PromptEncoder(text, image, "fp32")), Denoiser(image, "fp32", _compiled(transformer_block))
        return PromptEncoder(text, image, "fp32"), Denoiser(image, "fp32")

    def tokens(self, captions: Sequence[str], answers: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """[B, L] ids in the chat template, padded on the right to L of a multiple of 32, and [B] lengths."""
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
    """The language model learns to answer a caption with another caption of the same scene, in either language."""
    model = painter.language_model

    def loss_of(rng: Random, _step: int) -> Tensor:
        scenes = [training_scene(rng) for _ in range(stage.batch)]
        asked, answers = ([caption(s, rng.choice(("en", "zh")), rng) for s in scenes] for _ in range(2))
        _, read = painter.tokens(asked)
        ids, lengths = painter.tokens(asked, answers)
        position = torch.arange(ids.shape[1])[None]
        targets = ids.masked_fill((position < read[:, None]) | (position >= lengths[:, None]), IGNORED)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids.to(device)).logits
        return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten().to(device))

    return train(
        stage, {"language_model": model}, optimizers(model, stage.learning_rate, OUTER_LAYERS), loss_of, folder
    )


def train_painter(
    stage: Stage, painter: Painter, latents: Sequence[Latents], folder: Path, device: torch.device, compiled: bool
) -> list[float]:
    """Both models learn the velocity from an image to noise, at noise levels spread like the schedule's."""
    groups = ((painter.transformer, 1.0), (painter.language_model.model, TEXT_RATE))
    steppers = [o for model, share in groups for o in optimizers(model, share * stage.learning_rate, OUTER_LAYERS)]
    loss_of = flow_loss(stage, painter, latents, device, compiled)
    return train(stage, {"painter": painter}, steppers, loss_of, folder)


def flow_loss(
    stage: Stage, painter: Painter, latents: Sequence[Latents], device: torch.device, compiled: bool = False
) -> Callable[[Random, int], Tensor]:
    """Squared error of the velocity over a batch of one size, with one noise level per sample.

    It counts more where things are, which are a tenth of the image. Where noise hides a thing's size, that leans
    towards the larger ones.
    Attention is spelled out: for these short sequences the fused kernel's gradient takes a CPU eight times longer.
    """
    encode_prompt, denoise = painter.graphs(compiled)

    def loss_of(rng: Random, _step: int) -> Tensor:
        of_size = rng.choice(latents)
        height, width = (8 * side for side in of_size.values.shape[2:])
        chosen = [rng.randrange(len(of_size.scenes)) for _ in range(stage.images(height, width))]
        captions = [caption(of_size.scenes[i], rng.choice(("en", "zh")), rng) for i in chosen]
        ids, lengths = painter.tokens(captions)
        assert ids.shape[1] == CAPTION, f"captions take {ids.shape[1]} tokens, the tables are for {CAPTION}"
        clean = of_size.values[chosen].to(device).float()
        noise = torch.randn_like(clean)
        uniform = (torch.arange(len(chosen), device=device) + torch.rand(len(chosen), device=device)) / len(chosen)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noisy = clean + sigma[:, None, None, None] * (noise - clean)
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            embedded = encode_prompt(ids.to(device), lengths.to(device))
            velocity = denoise(noisy, sigma, sigma + 1, embedded, *of_size.rope) - noisy  # one Euler step of length 1
        weight = 1 + THING_WEIGHT * of_size.things[chosen].to(device)
        return F.mse_loss(velocity, noise - clean, reduction="none").mul(weight).mean()

    return loss_of


def _compiled(function: Graph) -> Graph:
    """Compiled once for each size of a batch; the choice of attention around the call does not reach inside."""

    def run(*inputs: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return function(*inputs)

    compiled: Graph = torch.compile(run, dynamic=False, recompile_limit=64)  # type: ignore[call-overload]  # not in its stubs
    return compiled


def _initialise(transformer: Any) -> None:
    """Output zero, blocks with modulation the identity; the pad tokens are uninitialised memory until here."""
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:
            nn.init.normal_(parameter, std=0.02)
        elif "adaLN_modulation" in name or "all_final_layer.2-1.linear" in name:
            nn.init.zeros_(parameter)
