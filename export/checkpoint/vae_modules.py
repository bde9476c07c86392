"""DiffSynth's VAE halves in the sizes of a config, and the official names of their parameters."""

from collections.abc import Iterable
from typing import Any

from diffsynth.models.flux_vae import (
    DownSampler,
    FluxVAEDecoder,
    FluxVAEEncoder,
    ResnetBlock,
    UpSampler,
    VAEAttentionBlock,
)
from torch import nn

from export.checkpoint.configs import Config

MID_BLOCK = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")


class ConfiguredVaeDecoder(FluxVAEDecoder):  # type: ignore[misc]
    """DiffSynth's decoder in the sizes of a config. DiffSynth's own constructor has the real model's sizes built in."""

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.scaling_factor, self.shift_factor = config["scaling_factor"], config["shift_factor"]
        *_, deepest = widths = list(config["block_out_channels"])
        groups = config["norm_num_groups"]
        blocks = _mid_block(deepest, groups)
        width = deepest
        for level, outer in enumerate(reversed(widths)):
            for _ in range(config["layers_per_block"] + 1):
                blocks.append(_resnet(width, outer, groups))
                width = outer
            if level < len(widths) - 1:
                blocks.append(UpSampler(width))
        self.conv_in = nn.Conv2d(config["latent_channels"], deepest, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.conv_norm_out = nn.GroupNorm(num_channels=width, num_groups=groups, eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, config["out_channels"], kernel_size=3, padding=1)


class ConfiguredVaeEncoder(FluxVAEEncoder):  # type: ignore[misc]
    """DiffSynth's encoder in the sizes of a config. Its forward pass returns the mean and drops the log-variance."""

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.scaling_factor, self.shift_factor = config["scaling_factor"], config["shift_factor"]
        first, *_ = widths = list(config["block_out_channels"])
        groups = config["norm_num_groups"]
        blocks: list[Any] = []
        width = first
        for level, outer in enumerate(widths):
            for _ in range(config["layers_per_block"]):
                blocks.append(_resnet(width, outer, groups))
                width = outer
            if level < len(widths) - 1:
                blocks.append(DownSampler(width, padding=0, extra_padding=True))
        self.conv_in = nn.Conv2d(config["in_channels"], first, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList([*blocks, *_mid_block(width, groups)])
        self.conv_norm_out = nn.GroupNorm(num_channels=width, num_groups=groups, eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, 2 * config["latent_channels"], kernel_size=3, padding=1)


def decoder_names(parameters: Iterable[str], config: Config) -> dict[str, str]:
    """Map DiffSynth's parameter names to the official tensor names, for the decoder."""
    levels = _level_blocks("up_blocks", "upsamplers", len(config["block_out_channels"]), config["layers_per_block"] + 1)
    return {name: f"decoder.{_official_name(name, [*MID_BLOCK, *levels])}" for name in parameters}


def encoder_names(parameters: Iterable[str], config: Config) -> dict[str, str]:
    """Map DiffSynth's parameter names to the official tensor names, for the encoder."""
    levels = _level_blocks("down_blocks", "downsamplers", len(config["block_out_channels"]), config["layers_per_block"])
    return {name: f"encoder.{_official_name(name, [*levels, *MID_BLOCK])}" for name in parameters}


def _mid_block(width: int, groups: int) -> list[Any]:
    attention = VAEAttentionBlock(1, width, width, norm_num_groups=groups, eps=1e-6, use_conv_attention=False)
    return [_resnet(width, width, groups), attention, _resnet(width, width, groups)]


def _resnet(inner: int, outer: int, groups: int) -> Any:
    return ResnetBlock(inner, outer, groups=groups, eps=1e-6)


def _level_blocks(level_name: str, sampler: str, levels: int, layers: int) -> list[str]:
    """Official names of the blocks outside the mid block, in the order of DiffSynth's numbered `blocks`."""
    blocks = []
    for level in range(levels):
        blocks += [f"{level_name}.{level}.resnets.{i}" for i in range(layers)]
        blocks += [f"{level_name}.{level}.{sampler}.0"] if level < levels - 1 else []
    return blocks


def _official_name(name: str, blocks: list[str]) -> str:
    if not name.startswith("blocks."):
        return name
    _, index, rest = name.split(".", 2)
    if ".attentions." in blocks[int(index)]:
        rest = rest.replace("transformer_blocks.0.", "").replace("to_out.", "to_out.0.")
        rest = rest.replace("norm.", "group_norm.")
    return f"{blocks[int(index)]}.{rest}"
