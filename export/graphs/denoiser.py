"""The denoiser graph: one Euler step of the flow, with the transformer and the update of the latents.

With the update inside the graph, sampling consists of enqueues over two latents buffers. The prompt encoder's graph has
the work that does not depend on the step. cos and sin depend on positions alone and are inputs.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.plan.manifest import SEQUENCE_MULTIPLE, Accumulation, Precision, TensorSpec
from export.checkpoint.models import Model
from export.checkpoint.rotary_layout import split_rotated
from export.checkpoint.weights import load_finite
from export.graphs.graph_module import GraphModule
from export.graphs.layers import linear, transformer_block
from export.precision.bounds import Modulation
from export.precision.casts import set_dtype
from export.precision.fp16 import Z_IMAGE_BLOCK, Fp16Block, Measured, measure_blocks

TIMESTEP_FREQUENCIES = 128  # half of DiffSynth's frequency_embedding_size
MAX_PERIOD = 10000
PATCH = "2-1"  # the key of the only patch size, 2 x 2 latents in 1 frame
FINAL_NORM_EPS = 1e-6
GRID = 16001  # timesteps whose modulation is evaluated: 16 for each of the 1000


class Denoiser(GraphModule):
    """One Euler step, latents + (sigma_next - sigma) * velocity, with a sigma per sample.

    Args:
        block: forward pass of a block: `transformer_block`, or a compiled version for faster training.
        accumulation: format in which products of FP16 are summed.
    """

    def __init__(
        self,
        transformer: Model,
        precision: Precision,
        block: Callable[..., Tensor] = transformer_block,
        accumulation: Accumulation = "fp32",
    ) -> None:
        super().__init__()
        self.precision = precision
        self.transformer = transformer.module
        self._block = block
        layers = {
            f"transformer.{name}.{index}": layer
            for name in ("noise_refiner", "layers")
            for index, layer in enumerate(getattr(self.transformer, name))
        }
        set_dtype(
            (part for layer in layers.values() for part in (layer.attention, layer.feed_forward)),
            precision,
            accumulation,
        )
        fp16 = layers if precision == "fp16" else {}
        self._fp16_blocks = [Fp16Block(name, layer, Z_IMAGE_BLOCK, accumulation) for name, layer in fp16.items()]
        head_dim = sum(transformer.config["axes_dims"])
        weights = split_rotated(transformer.weights, head_dim)
        self.weights = {f"transformer.{name}": weight for name, weight in weights.items()}
        channels, dim = transformer.config["in_channels"], transformer.config["dim"]
        latents = ("batch", channels, "latent_height", "latent_width")
        self.inputs = (
            TensorSpec("latents", "float32", latents),
            TensorSpec("sigma", "float32", ("batch",)),
            TensorSpec("sigma_next", "float32", ("batch",)),
            TensorSpec("prompt_embeds", "float32", ("batch", "prompt_length", dim)),
            TensorSpec("rope_cos", "float32", ("sequence", head_dim // 2)),
            TensorSpec("rope_sin", "float32", ("sequence", head_dim // 2)),
        )
        self.outputs = (TensorSpec("latents_next", "float32", latents),)

    def measure(self, keys: int | None = None) -> Measured:
        return measure_blocks(self._fp16_blocks, self.weights, self._modulation, keys)

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        prompt_embeds: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> Tensor:
        """Return the latents after one step.

        Args:
            latents: [B, C, h, w] float32.
            sigma, sigma_next: [B] float32, noise levels before and after the step.
            prompt_embeds: [B, L, D] float32.
            rope_cos, rope_sin: [S, head_dim / 2] float32; S is the number of padded image tokens plus L.

        Returns:
            [B, C, h, w] float32.
        """
        velocity = -self._transformer(latents, 1 - sigma, prompt_embeds, rope_cos, rope_sin)
        return latents + (sigma_next - sigma)[:, None, None, None] * velocity

    def _transformer(self, latents: Tensor, t: Tensor, prompt_embeds: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        model = self.transformer
        _, channels, height, width = latents.shape
        tokens = (height // 2) * (width // 2)
        image = cos.shape[0] - prompt_embeds.shape[1]  # tokens with their padding
        condition = self._timestep_embedding(t)

        x = linear(patchify(latents), model.all_x_embedder[PATCH])
        # Padded rows hold the learned pad token and take part in attention. Appending too many and cutting them keeps
        # every dimension of the graph above zero, also if there is nothing to pad.
        pad = model.x_pad_token.expand(x.shape[0], SEQUENCE_MULTIPLE - 1, -1)
        x = torch.cat([x, pad], dim=1)[:, :image]
        for layer in model.noise_refiner:
            x = self._block(layer, x, cos[:image], sin[:image], condition)
        x = torch.cat([x, prompt_embeds], dim=1)
        *layers, last = model.layers
        for layer in layers:
            x = self._block(layer, x, cos, sin, condition)
        x = self._block(last, x, cos, sin, condition, tokens)  # the last block's prompt rows are not needed
        return unpatchify(self._final_layer(x, condition), channels, height, width)

    def _timestep_embedding(self, t: Tensor) -> Tensor:
        """Embed timesteps, [B] in 0..1 -> [B, 256]. DiffSynth's own cast to BF16 fails with FP32 weights."""
        embedding: Tensor = self.transformer.t_embedder.mlp(timestep_frequencies(t * self.transformer.t_scale))
        return embedding

    def _modulation(self) -> Modulation:
        names = [f"transformer.t_embedder.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
        mlp = tuple(load_finite(self.weights[name]) for name in names)
        timesteps = torch.linspace(0, self.transformer.t_scale, GRID)
        return Modulation.over(timesteps, frequencies(timesteps.device), timestep_frequencies(timesteps), mlp)

    def _final_layer(self, x: Tensor, condition: Tensor) -> Tensor:
        final = self.transformer.all_final_layer[PATCH]
        scale = 1 + final.adaLN_modulation(condition)[:, None]
        return linear(F.layer_norm(x, x.shape[-1:], eps=FINAL_NORM_EPS) * scale, final.linear)


def timestep_frequencies(timestep: Tensor) -> Tensor:
    """Return cosines, then sines, of timesteps at all frequencies: [B] in 0..1000 -> [B, 256]."""
    angle = timestep[:, None] * frequencies(timestep.device)[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def frequencies(device: torch.device) -> Tensor:
    """Return the frequencies of the timestep embedding, [128], from 1 downwards."""
    index = torch.arange(TIMESTEP_FREQUENCIES, dtype=torch.float32, device=device)
    return torch.exp(-math.log(MAX_PERIOD) * index / TIMESTEP_FREQUENCIES)


def patchify(latents: Tensor) -> Tensor:
    """Split latents into tokens, [B, C, h, w] -> [B, h/2 * w/2, 4C]; the channel varies fastest within a token."""
    batch, channels, height, width = latents.shape
    x = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpatchify(tokens: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Invert `patchify`: [B, h/2 * w/2, 4C] -> [B, C, h, w]."""
    x = tokens.view(tokens.shape[0], height // 2, width // 2, 2, 2, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], channels, height, width)
