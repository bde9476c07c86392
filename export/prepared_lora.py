"""Preparation of a LoRA for refittable plans: its keys are matched, its matrices scaled, its FP16 scales computed.

The runtime has neither PyTorch nor the checkpoint, so the work that needs them is done here, once. `engine.plan.lora`
reads the result.
"""

from collections.abc import Mapping, Sequence

import torch

from engine.array import Array
from engine.errors import LoraMismatch
from engine.plan.lora import About, PreparedLora, require_refittable
from engine.plan.manifest import Manifest
from engine.plan.shapes import longest_sequence
from export.checkpoint.files import Checkpoint
from export.checkpoint.lora import Lora, Merged, merge
from export.checkpoint.rotary_layout import half_split, is_rotated
from export.checkpoint.weights import Fp16RangeError, Weight, exponent, load_as
from export.graphs.checkpoint_graphs import make_graphs
from export.graphs.graph_module import GraphModule


def prepare(checkpoint: Checkpoint, loras: Sequence[Lora], manifest: Manifest) -> PreparedLora:
    """Prepare LoRAs for the runtime.

    Args:
        checkpoint: checkpoint that the plans were built from.
        loras: LoRAs to add up.

    Raises:
        LoraMismatch: the plans are not refittable, or were built from another checkpoint.
        CheckpointError: a key matches no layer, or the merged weights leave the range of the plans' precision.
    """
    require_refittable(manifest)
    if checkpoint.fingerprint() != manifest.model.weights_sha256:
        raise LoraMismatch(f"the plans of {manifest.model.name} were built from other weights than {checkpoint.name}'s")
    merged = merge(checkpoint, loras)
    keys = longest_sequence(manifest.profiles, manifest.model)
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    factors = _factors(merged, sum(merged.transformer.config["axes_dims"]))
    exponents: dict[str, int] = {}
    scales: dict[str, Array] = {}
    for name, module in make_graphs(merged, precisions, manifest.accumulation).items():
        weights = _measure(module, keys)
        for refitted in manifest.graphs[name].refittable:
            own = [weights[part] for part in refitted.parts or (refitted.name,)]
            if not refitted.parts:
                scales[refitted.name] = own[0].load().numpy()
                continue
            exponents[refitted.name] = exponent(own[0])
            for part, weight in zip(refitted.parts, own, strict=True):
                if part in factors:
                    load_as(weight, getattr(torch, refitted.dtype))
    return PreparedLora(About(manifest.model.weights_sha256, precisions, exponents, keys), factors, scales)


def _measure(module: GraphModule, keys: int) -> Mapping[str, Weight]:
    try:
        return module.measure(keys).weights
    except Fp16RangeError as error:
        raise Fp16RangeError(f"with the LoRA, {error}; give it a smaller scale, such as FILE:0.5") from error


def _factors(merged: Checkpoint, head_dim: int) -> dict[str, tuple[Array, Array]]:
    """Return (down, up) of every changed weight in FP32, with rows in the order of the graphs.

    Several LoRAs become one of a higher rank.
    """
    factors = {}
    for name, weight in merged.transformer.weights.items():
        if isinstance(weight, Merged):
            downs = [update.down.load().float() for update in weight.updates]
            up = torch.cat([update.factor * update.up.load().float() for update in weight.updates], dim=1)
            ordered = half_split(up, head_dim) if is_rotated(name) else up
            factors[f"transformer.{name}"] = (torch.cat(downs).numpy(), ordered.contiguous().numpy())
    return factors
