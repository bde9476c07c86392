"""A small Z-Image transformer whose weights are as large as the real ones, one of its blocks, and inputs for it."""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch

from benchmarks.harness.evaluator import StrictEvaluator
from engine.plan.manifest import Accumulation, Precision, TensorSpec
from export.checkpoint import models
from export.checkpoint.files import Component
from export.checkpoint.weights import Weight
from export.compile import onnx_export
from export.compile.parity import Arrays
from export.graphs.denoiser import Denoiser
from export.graphs.graph_module import GraphModule
from export.graphs.layers import transformer_block
from export.precision.bounds import Modulation
from export.precision.casts import set_dtype
from export.precision.fp16 import Z_IMAGE_BLOCK, Fp16Block, Measured
from nano.layout import CheckpointSizes, transformer_config
from nano.miniature import tensor_shapes

SIZES = CheckpointSizes(dim=512, n_heads=4, n_layers=3, axes_dims=(32, 48, 48), cap_feat_dim=256)
CONFIG = transformer_config(SIZES)
OUTLIERS = 6  # channels of the feed-forward part that dominate it, as in the real model

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Held:
    """A weight in memory."""

    tensor: torch.Tensor
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def load(self) -> torch.Tensor:
        return self.tensor


def large_weights(boost: float, seed: int = 0) -> Tensors:
    """The transformer's; `boost` for what multiplies: values and products."""
    generator = torch.Generator().manual_seed(seed)
    weights: Tensors = {}
    for name, shape in tensor_shapes(SIZES)["transformer"].items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("pad_token", "bias")):
            weights[name] = 0.1 * noise
        else:
            weights[name] = noise / math.sqrt(shape[-1]) if len(shape) == 2 else 1 + 0.3 * noise
    for name in weights:
        own = boost if "context" not in name else 1.0
        if name.endswith("to_v.weight"):
            weights[name] *= 40 * own
        elif name.endswith("to_out.0.weight"):
            weights[name] *= 4e3
        elif name.endswith(("w1.weight", "w3.weight")):
            weights[name] *= 3 * math.sqrt(own)
            weights[name][:OUTLIERS] *= 60 * math.sqrt(own)
        elif name.endswith("norm2.weight"):
            weights[name] *= 3
    return {name: tensor.bfloat16().float() for name, tensor in weights.items()}


def denoiser(
    weights: Tensors, precision: Precision, accumulation: Accumulation = "fp32", *, naive: bool = False
) -> Denoiser:
    held: dict[str, Weight] = {name: Held(tensor, name) for name, tensor in weights.items()}
    component = Component("transformer", CONFIG, held, ())
    graph = Denoiser(models.transformer(component), "fp32" if naive else precision, accumulation=accumulation)
    if naive:
        blocks = [*graph.transformer.noise_refiner, *graph.transformer.layers]
        set_dtype((part for b in blocks for part in (b.attention, b.feed_forward)), precision)
    return graph


TRACED: dict[object, ir.Model] = {}


def write(graph: GraphModule, path: Path, measured: Measured | None = None) -> None:
    """Write the graph's ONNX file; the trace does not depend on weights and is made once."""
    sums = next((m.sums for m in graph.modules() if hasattr(m, "sums")), None)
    kind = type(graph), sums, *((name, parameter.dtype) for name, parameter in graph.named_parameters())
    if kind not in TRACED:
        TRACED[kind] = onnx_export.trace(graph)
    model = TRACED[kind].clone()
    onnx_export.attach_weights(model, (measured or graph.measure()).weights)
    onnx_export.write(model, path)


def evaluator(graph: GraphModule, measured: Measured | None = None, *, float64: bool = False) -> StrictEvaluator:
    with TemporaryDirectory() as folder:
        write(graph, path := Path(folder) / "graph.onnx", measured)
        return StrictEvaluator(path, float64=float64)


class BlockGraph(GraphModule):
    """One block of the transformer, with the condition of its modulation as an input."""

    def __init__(self, weights: Tensors, precision: Precision, accumulation: Accumulation = "fp32") -> None:
        super().__init__()
        held: dict[str, Weight] = {name: Held(tensor, name) for name, tensor in weights.items()}
        model = models.transformer(Component("transformer", CONFIG, held, ()))
        self.block = model.module.layers[0]
        self.precision = precision
        set_dtype((self.block.attention, self.block.feed_forward), precision, accumulation)
        self._fp16 = Fp16Block("block", self.block, Z_IMAGE_BLOCK, accumulation) if precision == "fp16" else None
        own = "layers.0."
        self.weights = {f"block.{n.removeprefix(own)}": w for n, w in model.weights.items() if n.startswith(own)}
        frequencies = sum(SIZES.axes_dims) // 2
        self.inputs = (
            TensorSpec("x", "float32", ("batch", "sequence", SIZES.dim)),
            TensorSpec("condition", "float32", ("batch", 256)),
            TensorSpec("rope_cos", "float32", ("sequence", frequencies)),
            TensorSpec("rope_sin", "float32", ("sequence", frequencies)),
        )
        self.outputs = (TensorSpec("y", "float32", ("batch", "sequence", SIZES.dim)),)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return transformer_block(self.block, x, cos, sin, condition)

    def measure_at(self, condition: torch.Tensor, keys: int) -> Measured:
        assert self._fp16 is not None
        measured = self._fp16.measure(self.weights, Modulation(condition, torch.zeros(1), torch.zeros(256, 1)), keys)
        return Measured(measured.products, {**self.weights, **measured.weights})


def block_inputs(
    weights: Tensors, seed: int, magnitudes: tuple[float, float], tokens: int = 24, outlier: float = 1.0
) -> Arrays:
    """Tokens of a range of magnitudes, and some along the worst rows of what multiplies them."""
    generator = torch.Generator().manual_seed(seed)
    condition = torch.randn(1, 256, generator=generator)
    scale_msa, _, scale_mlp, _ = (
        condition @ weights["layers.0.adaLN_modulation.0.weight"].T + weights["layers.0.adaLN_modulation.0.bias"]
    ).chunk(4, -1)
    size = torch.logspace(*(math.log10(m) for m in magnitudes), tokens)[:, None]
    x = torch.randn(tokens, SIZES.dim, generator=generator) * size
    x[:, 7] *= outlier  # a channel that stands out, as in real residual streams
    worst = []
    for layer, norm, scale in (
        ("attention.to_v", "attention_norm1", scale_msa),
        ("attention.to_q", "attention_norm1", scale_msa),
        ("feed_forward.w1", "ffn_norm1", scale_mlp),
        ("feed_forward.w3", "ffn_norm1", scale_mlp),
    ):
        rows = weights[f"layers.0.{layer}.weight"] * weights[f"layers.0.{norm}.weight"] * (1 + scale)
        row = rows[rows.norm(dim=1).argmax()]
        worst += [magnitudes[1] * row / row.norm(), -magnitudes[0] * row / row.norm()]
    angle = torch.rand(tokens + len(worst), sum(SIZES.axes_dims) // 2, generator=generator) * 6
    return {
        "x": torch.cat([x, torch.stack(worst)])[None].numpy(),
        "condition": condition.numpy(),
        "rope_cos": angle.cos().numpy(),
        "rope_sin": angle.sin().numpy(),
    }
