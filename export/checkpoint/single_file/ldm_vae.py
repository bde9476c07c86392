"""Official (diffusers') names of a VAE's tensors in its original key layout, that of latent-diffusion and FLUX.

There `up.3` is the first level of the decoder, and the attention of the middle is made of convolutions of one pixel.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from export.checkpoint.scaled_weights import FileWeight
from export.checkpoint.weights import Derived, Weight

LEVEL = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(?:block\.(\d+)\.(.+)|(?:downsample|upsample)\.(.+))")
MIDDLE = {
    ".mid.block_1.": ".mid_block.resnets.0.",
    ".mid.block_2.": ".mid_block.resnets.1.",
    ".mid.attn_1.norm.": ".mid_block.attentions.0.group_norm.",
    ".mid.attn_1.q.": ".mid_block.attentions.0.to_q.",
    ".mid.attn_1.k.": ".mid_block.attentions.0.to_k.",
    ".mid.attn_1.v.": ".mid_block.attentions.0.to_v.",
    ".mid.attn_1.proj_out.": ".mid_block.attentions.0.to_out.0.",
}
OUTSIDE = {"encoder.norm_out.": "encoder.conv_norm_out.", "decoder.norm_out.": "decoder.conv_norm_out."}


@dataclass(frozen=True, slots=True)
class Matrix(Derived):
    """A convolution of one pixel, [out, in, 1, 1], as the matrix of a linear layer, [out, in]."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[:2]

    def load(self) -> Tensor:
        return self.weight.load().flatten(1)


def official_vae_weights(weights: Mapping[str, FileWeight]) -> dict[str, Weight]:
    """Return the weights of a VAE, in its original or in the official key layout, by their official names."""
    levels = 1 + max((int(match[3]) for key in weights if (match := LEVEL.fullmatch(key))), default=0)
    official: dict[str, Weight] = {}
    for key, weight in weights.items():
        name = _official_name(key, levels)
        is_convolution = ".attentions." in name and weight.shape[2:] == (1, 1)
        official[name] = Matrix(weight) if is_convolution else weight
    return official


def _official_name(key: str, levels: int) -> str:
    for original, name in (MIDDLE | OUTSIDE).items():
        key = key.replace(original, name)
    if (match := LEVEL.fullmatch(key)) is None:
        return key
    half, side, level, block, rest, sampler = match.groups()
    number = int(level) if side == "down" else levels - 1 - int(level)
    blocks = f"{half}.{side}_blocks.{number}"
    if block is None:
        return f"{blocks}.{side}samplers.0.{sampler}"
    return f"{blocks}.resnets.{block}.{rest.replace('nin_shortcut', 'conv_shortcut')}"
