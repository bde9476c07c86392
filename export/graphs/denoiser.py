"""The denoiser graph: one Euler step of the flow, transformer and update together.

With the step inside, sampling is nothing but enqueues over two latents buffers. What does not depend on the step
(the prompt's embedding) is in the prompt encoder's graph, what depends on positions alone (cos, sin) is an input.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.plan.manifest import SEQUENCE_MULTIPLE, Precision, TensorSpec
from export.checkpoint.models import Model
from export.checkpoint.weights import load_finite
from export.graphs.graph_module import GraphModule
from export.graphs.layers import linear, transformer_block
from export.precision.bounds import Modulation
from export.precision.dtypes import set_dtype
from export.precision.fp16 import Z_IMAGE_BLOCK, Fp16Block, Measured, measure_blocks

TIMESTEP_FREQUENCIES = 128  # half of DiffSynth's frequency_embedding_size
MAX_PERIOD = 10000
PATCH = "2-1"  # the key of the only patch size, 2 x 2 latents in 1 frame
FINAL_NORM_EPS = 1e-6
GRID = 16001  # timesteps whose modulation is looked at: 16 for each of the 1000


class Denoiser(GraphModule):
    """latents + (sigma_next - sigma) * velocity; per sample its own sigma.

    Args:
        block: the forward pass of a block, `transformer_block` or the same compiled, which training is faster with.
    """

    def __init__(
        self, transformer: Model, precision: Precision, block: Callable[..., Tensor] = transformer_block
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
        set_dtype((part for layer in layers.values() for part in (layer.attention, layer.feed_forward)), precision)
        fp16 = layers if precision == "fp16" else {}
        self._fp16_blocks = [Fp16Block(name, layer, Z_IMAGE_BLOCK) for name, layer in fp16.items()]
        self.weights = {f"transformer.{name}": weight for name, weight in transformer.weights.items()}
        channels, dim = transformer.config["in_channels"], transformer.config["dim"]
        frequencies = sum(transformer.config["axes_dims"]) // 2
        latents = ("batch", channels, "latent_height", "latent_width")
        self.inputs = (
            TensorSpec("latents", "float32", latents),
            TensorSpec("sigma", "float32", ("batch",)),
            TensorSpec("sigma_next", "float32", ("batch",)),
            TensorSpec("prompt_embeds", "float32", ("batch", "prompt_length", dim)),
            TensorSpec("rope_cos", "float32", ("sequence", frequencies)),
            TensorSpec("rope_sin", "float32", ("sequence", frequencies)),
        )
        self.outputs = (TensorSpec("latents_next", "float32", latents),)

    def measure(self) -> Measured:
        return measure_blocks(self._fp16_blocks, self.weights, self._modulation)

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        prompt_embeds: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> Tensor:
        """Shapes as in `inputs`; `sequence` is the padded image tokens plus `prompt_embeds`."""
        velocity = -self._transformer(latents, 1 - sigma, prompt_embeds, rope_cos, rope_sin)
        return latents + (sigma_next - sigma)[:, None, None, None] * velocity

    def _transformer(self, latents: Tensor, t: Tensor, prompt_embeds: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        model = self.transformer
        _, channels, height, width = latents.shape
        tokens = (height // 2) * (width // 2)
        image = cos.shape[0] - prompt_embeds.shape[1]  # tokens with their padding
        condition = self._timestep_embedding(t)

        x = linear(patchify(latents), model.all_x_embedder[PATCH])
        # Padded rows are the learned pad token and are attended. Cutting a surplus of them keeps every dimension of
        # the graph above zero, also where there is nothing to pad.
        pad = model.x_pad_token.expand(x.shape[0], SEQUENCE_MULTIPLE - 1, -1)
        x = torch.cat([x, pad], dim=1)[:, :image]
        for layer in model.noise_refiner:
            x = self._block(layer, x, cos[:image], sin[:image], condition)
        x = torch.cat([x, prompt_embeds], dim=1)
        *layers, last = model.layers
        for layer in layers:
            x = self._block(layer, x, cos, sin, condition)
        x = self._block(last, x, cos, sin, condition, tokens)  # nobody reads what it makes of the prompt
        return unpatchify(self._final_layer(x, condition), channels, height, width)

    def _timestep_embedding(self, t: Tensor) -> Tensor:
        """[B] in 0..1 -> [B, 256]. DiffSynth's own has a hard cast to BF16, which FP32 weights do not survive."""
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
    """[B] in 0..1000 -> [B, 256]: cosines, then sines."""
    angle = timestep[:, None] * frequencies(timestep.device)[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def frequencies(device: torch.device) -> Tensor:
    """Of the timestep's embedding, [128], from 1 down."""
    index = torch.arange(TIMESTEP_FREQUENCIES, dtype=torch.float32, device=device)
    return torch.exp(-math.log(MAX_PERIOD) * index / TIMESTEP_FREQUENCIES)


def patchify(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 * w/2, 4C]; within a token the channel runs fastest."""
    batch, channels, height, width = latents.shape
    x = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpatchify(tokens: Tensor, channels: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`."""
    x = tokens.view(tokens.shape[0], height // 2, width // 2, 2, 2, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], channels, height, width)
