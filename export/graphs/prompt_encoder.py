"""The prompt encoder graph: Qwen3 without its last layer, then the transformer's layers for the prompt.

The graph has all work between a prompt and the denoiser that does not depend on the step, so it runs once per prompt.
Attention is causal, so right padding does not affect earlier rows. Padded rows are replaced after Qwen3.
"""

import math
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.plan.manifest import Precision, TensorSpec
from export.checkpoint.configs import Config
from export.checkpoint.models import Model
from export.checkpoint.rotary_layout import split_rotated
from export.checkpoint.weights import load_as
from export.graphs.graph_module import GraphModule
from export.graphs.layers import (
    attend,
    linear,
    linears,
    rms_norm,
    rotate,
    sums_of,
    swiglu,
    transformer_block,
    unscaled,
)
from export.precision.casts import DTYPES, set_dtype
from export.precision.fp16 import QWEN3_LAYER, Z_IMAGE_BLOCK, Fp16Block, Measured, measure_blocks

ROPE_KEYS = ("rope_type", "type", "rope_theta")


class PromptEncoder(GraphModule):
    """Token ids to the prompt embedding that the denoiser attends to."""

    def __init__(self, text_encoder: Model, transformer: Model, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.text_encoder = text_encoder.module
        self.transformer = transformer.module
        self._rope_theta = rope_theta(text_encoder.config)
        self._head_dim = self.text_encoder.layers[0].self_attn.head_dim
        self._prompt_rope = (transformer.config["rope_theta"], tuple(transformer.config["axes_dims"]))
        layers = [*self.text_encoder.layers, *self.transformer.context_refiner]
        set_dtype(layers, precision)
        self.text_encoder.embed_tokens.to(DTYPES[precision])
        self._fp16_blocks = self._blocks() if precision == "fp16" else []
        self.weights = {f"text_encoder.{name}": weight for name, weight in text_encoder.weights.items()}
        prompt_weights = split_rotated(transformer.weights, sum(transformer.config["axes_dims"]))
        self.weights |= {f"transformer.{name}": weight for name, weight in prompt_weights.items()}
        self.inputs = (
            TensorSpec("input_ids", "int64", ("batch", "prompt_length")),
            TensorSpec("lengths", "int64", ("batch",)),
        )
        self.outputs = (TensorSpec("prompt_embeds", "float32", ("batch", "prompt_length", transformer.config["dim"])),)

    def measure(self, keys: int | None = None) -> Measured:
        del keys  # products are summed in FP32
        if self.precision == "fp16":
            load_as(self.weights["text_encoder.embed_tokens.weight"], DTYPES[self.precision])
        return measure_blocks(self._fp16_blocks, self.weights)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the prompt embedding.

        Args:
            input_ids: [B, L] int64, padded on the right; L is a multiple of 32.
            lengths: [B] int64, number of tokens of each sample without padding.

        Returns:
            [B, L, D] float32.
        """
        return self._context(self._hidden_states(input_ids), lengths)

    def _blocks(self) -> list[Fp16Block]:
        text, image = self.text_encoder.layers[:-1], self.transformer.context_refiner
        return [
            *(Fp16Block(f"text_encoder.layers.{i}", layer, QWEN3_LAYER) for i, layer in enumerate(text)),
            *(Fp16Block(f"transformer.context_refiner.{i}", block, Z_IMAGE_BLOCK) for i, block in enumerate(image)),
        ]

    def _hidden_states(self, input_ids: Tensor) -> Tensor:
        """Return Qwen3's hidden_states[-2], the output of the second-last layer without a norm.

        [B, L] -> [B, L, hidden] float32.
        """
        x: Tensor = self.text_encoder.embed_tokens(input_ids).float()
        index = torch.arange(0, self._head_dim, 2, dtype=torch.float32, device=x.device)
        position = torch.arange(input_ids.shape[1], dtype=torch.float32, device=x.device)
        angle = position[:, None] / self._rope_theta ** (index / self._head_dim)
        cos, sin = angle.cos(), angle.sin()
        for layer in self.text_encoder.layers[:-1]:
            attention, mlp = layer.self_attn, layer.mlp
            attended = self._attention(attention, rms_norm(x, layer.input_layernorm), cos, sin)
            x = x + unscaled(attended, attention.o_proj)
            fed = swiglu(rms_norm(x, layer.post_attention_layernorm), mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            x = x + unscaled(fed, mlp.down_proj)
        return x

    def _attention(self, module: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (
            y.unflatten(-1, (-1, self._head_dim)) for y in linears(x, module.q_proj, module.k_proj, module.v_proj)
        )
        query = rotate(rms_norm(query, module.q_norm), cos, sin)
        key = rotate(rms_norm(key, module.k_norm), cos, sin)
        groups = module.num_key_value_groups
        key, value = repeat_heads(key, groups), repeat_heads(value, groups)
        attended = attend(query, key, value, sums_of(module.v_proj), causal=True)
        return linear(attended, module.o_proj)

    def _context(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Apply cap_embedder, pad token and context_refiner, [B, L, hidden] -> [B, L, D]."""
        norm, embed = self.transformer.cap_embedder
        x = linear(rms_norm(hidden, norm), embed)
        index = torch.arange(x.shape[1], device=x.device)
        x = torch.where((index < lengths[:, None])[..., None], x, self.transformer.cap_pad_token)
        cos, sin = self._prompt_tables(x.shape[1], x.device)
        for block in self.transformer.context_refiner:
            x = transformer_block(block, x, cos, sin)
        return x

    def _prompt_tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin at positions (1..L, 0, 0), [L, head_dim / 2]; the two image axes are not rotated."""
        theta, (text_dim, *image_dims) = self._prompt_rope
        index = torch.arange(0, text_dim, 2, dtype=torch.float32, device=device)
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angle = position[:, None] / theta ** (index / text_dim)
        angle = torch.nn.functional.pad(angle, (0, sum(image_dims) // 2))
        return angle.cos(), angle.sin()


def rope_theta(config: Config) -> float:
    """Return the base of Qwen3's rotary embedding from a config of transformers 4 or 5.

    Raises:
        CheckpointError: the config has no rope_theta, or another rope_type than the default, or scales the embedding.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise CheckpointError(f"text_encoder/config.json: rope_parameters must be an object, got {parameters!r}")
    if parameters.get("rope_type", parameters.get("type", "default")) != "default":
        raise CheckpointError(f"text_encoder/config.json: rope_type must be default, got {parameters}")
    for key, value in parameters.items():
        if value is not None and not (key in ROPE_KEYS or (key == "partial_rotary_factor" and value == 1)):
            raise CheckpointError(f"text_encoder/config.json: rope_parameters must not have {key}, got {value!r}")
    theta = parameters.get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise CheckpointError("text_encoder/config.json has no rope_theta")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise CheckpointError(f"text_encoder/config.json: rope_theta must be a number above zero, got {theta!r}")
    return float(theta)


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """Repeat each head `groups` times in a row, [B, S, kv_heads, d] -> [B, S, kv_heads * groups, d]."""
    batch, length, heads, dim = x.shape
    return x[:, :, :, None].expand(batch, length, heads, groups, dim).flatten(2, 3)
