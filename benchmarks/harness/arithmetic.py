"""The arithmetic of a stage, and the least time for it at given rates: its roofline.

Matrix products, convolutions and attention count (a multiply-add is 2 operations), and each of their weights is read
once. Norms, embeddings and activations do not count, since a perfect kernel would hide them. Work that is done once
per prompt does not count per step. The module does not know how the stages are executed, and needs no PyTorch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from engine.plan.manifest import padded
from nano.layout import LATENT_CHANNELS

Config = Mapping[str, Any]

PATCH = 2  # latents per token along an axis
VAE_SCALE = 8  # pixels per latent
CONDITION = 256  # width of the timestep embedding, DiffSynth's ADALN_EMBED_DIM


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations, and the number of weight elements that they read."""

    flops: int
    weights: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.weights + other.weights)

    def times(self, count: int) -> "Work":
        """Return the work of `count` layers, each with its own weights."""
        return Work(count * self.flops, count * self.weights)

    def batch(self, count: int) -> "Work":
        """Return the work of `count` samples that share the weights."""
        return Work(count * self.flops, self.weights)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Work of each stage for one sample, from the configs of a checkpoint."""

    transformer: Config
    text_encoder: Config
    vae: Config

    @classmethod
    def of(cls, configs: Mapping[str, Config]) -> Self:
        """Make an Arithmetic from configs by the names of the checkpoint's folders."""
        return cls(configs["transformer"], configs["text_encoder"], configs["vae"])

    def prompt_encoder(self, tokens: int) -> Work:
        """Return the work of the text encoder without its last layer and of the prompt's part of the transformer."""
        text, image = self.text_encoder, self.transformer
        hidden, inner = text["hidden_size"], text["intermediate_size"]
        heads, grouped = (text["head_dim"] * text[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
        layer = _linear(tokens, hidden, heads).times(2) + _linear(tokens, hidden, grouped).times(2)
        layer += _linear(tokens, hidden, inner).times(3) + _attention(tokens, heads)
        refined = self._block(tokens).times(image["n_refiner_layers"])
        return layer.times(text["num_hidden_layers"] - 1) + _linear(tokens, hidden, image["dim"]) + refined

    def step(self, height: int, width: int, prompt_tokens: int) -> Work:
        """Return the work of one forward pass over height x width pixels and `prompt_tokens` padded tokens."""
        sizes, dim = self.transformer, self.transformer["dim"]
        patch = LATENT_CHANNELS * PATCH**2
        image = padded(height * width // (VAE_SCALE * PATCH) ** 2)
        refiners, layers = sizes["n_refiner_layers"], sizes["n_layers"]
        blocks = self._block(image).times(refiners) + self._block(image + prompt_tokens).times(layers)
        modulation = _linear(1, min(CONDITION, dim), 4 * dim).times(refiners + layers)
        return blocks + modulation + _linear(image, patch, dim) + _linear(image, dim, patch)

    def decode(self, height: int, width: int) -> Work:
        """Return the work of the VAE decoder for height x width pixels."""
        h, w = height // VAE_SCALE, width // VAE_SCALE
        channels, layers = self.vae["block_out_channels"][::-1], self.vae["layers_per_block"] + 1
        deepest = channels[0]
        work = _convolution(h * w, LATENT_CHANNELS, deepest) + _resnet(h * w, deepest, deepest).times(2)
        work += _linear(h * w, deepest, deepest).times(4) + _attention(h * w, deepest)
        before = deepest
        for level, after in enumerate(channels):
            work += _resnet(h * w, before, after) + _resnet(h * w, after, after).times(layers - 1)
            if level < len(channels) - 1:
                h, w = 2 * h, 2 * w
                work += _convolution(h * w, after, after)
            before = after
        return work + _convolution(h * w, before, 3)

    def encode_image(self, height: int, width: int) -> Work:
        """Return the work of the VAE encoder for height x width pixels."""
        h, w = height, width
        channels, layers = self.vae["block_out_channels"], self.vae["layers_per_block"]
        before = channels[0]
        work = _convolution(h * w, 3, before)
        for level, after in enumerate(channels):
            work += _resnet(h * w, before, after) + _resnet(h * w, after, after).times(layers - 1)
            if level < len(channels) - 1:
                h, w = h // 2, w // 2
                work += _convolution(h * w, after, after)
            before = after
        deepest = before
        work += _resnet(h * w, deepest, deepest).times(2)
        work += _linear(h * w, deepest, deepest).times(4) + _attention(h * w, deepest)
        return work + _convolution(h * w, deepest, 2 * LATENT_CHANNELS)

    def _block(self, tokens: int) -> Work:
        dim = self.transformer["dim"]
        products = _linear(tokens, dim, dim).times(4) + _linear(tokens, dim, int(dim / 3 * 8)).times(3)
        return products + _attention(tokens, dim)


def _linear(rows: int, inputs: int, outputs: int) -> Work:
    return Work(2 * rows * inputs * outputs, inputs * outputs)


def _attention(tokens: int, width: int) -> Work:
    return Work(4 * tokens**2 * width)


def _convolution(pixels: int, inputs: int, outputs: int, kernel: int = 3) -> Work:
    return _linear(pixels, inputs * kernel**2, outputs)


def _resnet(pixels: int, inputs: int, outputs: int) -> Work:
    work = _convolution(pixels, inputs, outputs) + _convolution(pixels, outputs, outputs)
    return work + _convolution(pixels, inputs, outputs, kernel=1) if inputs != outputs else work


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured peak rates of a device.

    Attributes:
        flops: operations per second.
        bandwidth: bytes per second.
        itemsize: bytes of a number.
    """

    flops: float
    bandwidth: float
    itemsize: int

    def floor(self, work: Work) -> float:
        """Return the least seconds for the work, the larger of the two bounds."""
        return max(work.flops / self.flops, work.weights * self.itemsize / self.bandwidth)
