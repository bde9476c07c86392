"""Training of a style LoRA, outlines instead of filled shapes, and writing of it in two common key formats."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nano.flow import Painter, flow_loss
from nano.images import Latents
from nano.training import Stage, train

RANK = 4
TARGETS = (
    *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
)

Pairs = dict[str, tuple[Tensor, Tensor]]  # layer -> down [rank, in], up [out, rank]


class LowRank(nn.Module):
    """A weight plus up @ down, as a parametrization of weights, because the forward passes of `export` read weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(RANK, inputs, device=weight.device) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(outputs, RANK, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def train_lora(stage: Stage, painter: Painter, latents: Sequence[Latents], folder: Path, device: torch.device) -> Pairs:
    """Train low-rank pairs with which `painter` generates images like `latents`; its own weights do not change."""
    stage.random(-1)
    painter.requires_grad_(False)
    layers = {
        name: layer
        for name, layer in painter.transformer.named_modules()
        if name.endswith(TARGETS) and name.startswith(("layers.", "noise_refiner."))
    }
    adapters = nn.ModuleDict({name.replace(".", "_"): LowRank(layer.weight) for name, layer in layers.items()})
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", adapters[name.replace(".", "_")])
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=stage.learning_rate, weight_decay=0.0)
    train(stage, {"adapters": adapters}, [optimizer], flow_loss(stage, painter, latents, device), folder)
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    pairs = {}
    for name in layers:
        adapter = adapters[name.replace(".", "_")]
        assert isinstance(adapter, LowRank)
        pairs[name] = (adapter.down.detach().bfloat16(), adapter.up.detach().bfloat16())
    return pairs


def write_lora(pairs: Pairs, folder: Path) -> None:
    """Write the pairs under DiffSynth's keys and, with an alpha, under kohya's."""
    diffsynth: dict[str, Tensor] = {}
    kohya: dict[str, Tensor] = {}
    for name, (down, up) in pairs.items():
        diffsynth |= {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
        flat = f"lora_unet_{name.replace('.', '_')}"
        kohya |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(float(RANK)),
        }
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in (("outlines.safetensors", diffsynth), ("outlines-kohya.safetensors", kohya)):
        (folder / file).write_bytes(save(tensors, metadata={"format": "pt"}))
