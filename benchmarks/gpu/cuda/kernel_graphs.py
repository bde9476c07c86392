"""The graphs of `kernel_source` in numpy, and a plan directory for them: a manifest, weights, a tokenizer, a LoRA.

`HostGraph` runs a graph as an engine on the CPU; its images are what a device must give bit for bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.gpu.cuda.kernel_source import SUMS, WIDTH
from engine.array import Array
from engine.backends.base import Backend, Bindings, Engine
from engine.backends.host_memory import HostMemory
from engine.pipeline import Pipeline
from engine.plan.delta import LowRank
from engine.plan.lora import About, PreparedLora, Scaling, base_weight
from engine.plan.manifest import (
    SCHEMA_VERSION,
    Graph,
    GraphName,
    Manifest,
    Model,
    Precision,
    Profile,
    PromptFormat,
    Range,
    RefitWeight,
    Rope,
    Target,
    TensorSpec,
)
from engine.plan.shapes import dimensions
from engine.sampling.tokenizer import PromptTokenizer
from nano.tokenizer import write_tokenizer

CHANNELS = 16
PART = "layer.weight"  # the parameter behind `tint`
WEIGHTS_SHA256 = "0" * 64
PROMPTS = Range(32, 64, 512)
PLAN_BYTES = 1 << 20  # of a plan file, which nothing reads
LORA = "tinted"
TINT = RefitWeight("tint", (PART,), False, 0, "float32", (CHANNELS, WIDTH), 0)


def manifest(*, quick: bool) -> Manifest:
    """Return the manifest of the graphs, with Z-Image-Turbo's widths or, if quick, tiny ones."""
    small, usual, large = (64, 128, 192) if quick else (256, 1024, 2048)
    dim, axes = (16, (4, 6, 6)) if quick else (3840, (32, 48, 48))
    side, sides = Range(small, usual, usual), Range(small, usual, large)
    plans = Manifest(
        schema_version=SCHEMA_VERSION,
        plan_id="kernels",
        zimage_trt="",
        precision="fp32",
        model=Model(
            name="kernels",
            weights_sha256=WEIGHTS_SHA256,
            latent_channels=CHANNELS,
            vae_scale=8,
            patch_size=2,
            prompt_embeds_dim=dim,
            rope=Rope(256.0, axes, (1536, 512, 512)),
            prompt=PromptFormat("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", 512, 0),
            schedule_shift=3.0,
            default_steps=8,
            default_guidance=0.0,
        ),
        target=Target("tensorrt", "kernels"),
        profiles=(
            Profile("usual", side, side, Range(1, 1, 4), PROMPTS),
            Profile("large", sides, sides, Range(1, 1, 2), PROMPTS),
        ),
        graphs=_graphs(dim, sum(axes) // 2),
        files=(),
        refittable=True,
    )
    graphs = {
        name: replace(graph, activation_bytes=tuple(scratch_bytes(name, plans, profile) for profile in plans.profiles))
        for name, graph in plans.graphs.items()
    }
    return replace(plans, graphs=graphs)


def _graphs(dim: int, rotations: int) -> dict[GraphName, Graph]:
    """Return the graphs; `dim` is of the prompt's tokens, `rotations` the width of the rotary tables."""
    shape = ("batch", CHANNELS, "latent_height", "latent_width")
    latents, *guided = (
        TensorSpec(f"latents{name}", "float32", shape) for name in ("", "_positive", "_negative", "_before", "_guided")
    )
    after = TensorSpec("latents_next", "float32", shape)
    sigma, sigma_next, scale, normalization, mean = (
        TensorSpec(name, "float32", ("batch",))
        for name in ("sigma", "sigma_next", "guidance_scale", "cfg_normalization", "image_mean")
    )
    tables = (TensorSpec(f"rope_{function}", "float32", ("sequence", rotations)) for function in ("cos", "sin"))
    ids, lengths = (
        TensorSpec("input_ids", "int64", ("batch", "prompt_length")),
        TensorSpec("lengths", "int64", ("batch",)),
    )
    prompt_embeds = TensorSpec("prompt_embeds", "float32", ("batch", "prompt_length", dim))
    image = TensorSpec("image", "uint8", ("batch", "height", "width", 3))
    denoiser = Graph("denoiser.plan", "fp32", (latents, sigma, sigma_next, prompt_embeds, *tables), (after,))
    return {
        "prompt_encoder": Graph("prompt_encoder.plan", "fp32", (ids, lengths), (prompt_embeds,)),
        "denoiser": replace(denoiser, refittable=(TINT,), weights_file="denoiser.weights"),
        "guidance": Graph("guidance.plan", "fp32", (*guided[:-1], scale, normalization), (guided[-1],)),
        "vae_decoder": Graph("vae_decoder.plan", "fp32", (latents,), (image, mean)),
    }


def scratch_bytes(name: GraphName, plans: Manifest, profile: Profile) -> int:
    """Return the bytes that a graph computes in: four for each number of its output, and its partial sums."""
    bounds = dimensions(name, profile, plans.model)
    numbers = math.prod(d if isinstance(d, int) else bounds[d].max for d in plans.graphs[name].outputs[0].shape)
    return 4 * (numbers + SUMS if name == "vae_decoder" else numbers)


def write_directory(folder: Path, plans: Manifest) -> Path:
    """Write a tokenizer, the base values of `tint`, placeholder plan files and a LoRA, and return the folder."""
    write_tokenizer(folder / "tokenizer")
    for graph in plans.graphs.values():
        (folder / graph.file).write_bytes(bytes(PLAN_BYTES))
    base = np.random.default_rng(0).uniform(-0.5, 0.5, TINT.shape).astype(np.float32)
    (folder / "denoiser.weights").write_bytes(base.tobytes())
    (folder / f"{LORA}.lora").write_bytes(lora(plans).encode())
    return folder


def lora(plans: Manifest) -> PreparedLora:
    """Return a LoRA of rank 2 that changes `tint`."""
    rng = np.random.default_rng(1)
    down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, WIDTH), (CHANNELS, 2)))
    precisions: dict[GraphName, Precision] = {name: graph.precision for name, graph in plans.graphs.items()}
    scalings = (Scaling(1.0, {TINT.name: 0}),)
    return PreparedLora(About(WEIGHTS_SHA256, precisions, scalings), {PART: (LowRank(down, up),)})


def base_tint(folder: Path, graph: Graph) -> Array:
    """Return the values of `tint` without a LoRA."""
    return np.array(base_weight(graph, TINT, folder))


def host_pipeline(folder: Path, plans: Manifest, slots: int = 0) -> Pipeline:
    """Return a pipeline over the graphs in numpy."""
    memory = HostMemory(plans, plans.profiles, slots)
    engines: dict[GraphName, Engine] = {name: HostGraph(name, folder, graph) for name, graph in plans.graphs.items()}
    return Pipeline(plans, PromptTokenizer(folder, plans.model.prompt), Backend(memory, engines))


class HostGraph(Engine):
    """A graph in numpy."""

    def __init__(self, name: GraphName, folder: Path, graph: Graph) -> None:
        computations: dict[GraphName, Callable[[Bindings], None]] = {
            "prompt_encoder": encode,
            "denoiser": self._denoise,
            "guidance": guide,
            "vae_decoder": decode,
        }
        self._compute = computations[name]
        self._folder, self._graph = folder, graph
        self._tint = base_tint(folder, graph) if graph.refittable else None

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == 0
        self._compute(bindings)

    def refit(self, lora: PreparedLora | None) -> Iterator[None]:
        if self._graph.refittable:
            changed = {} if lora is None else dict(lora.weights(self._graph, self._folder))
            self._tint = changed.get(TINT.name, base_tint(self._folder, self._graph))
            yield

    def _denoise(self, tensors: Mapping[str, Array]) -> None:
        assert self._tint is not None
        denoise(tensors, self._tint)


def encode(tensors: Mapping[str, Array]) -> None:
    """Compute `encode` of `kernel_source`."""
    ids, lengths, out = tensors["input_ids"], tensors["lengths"], tensors["prompt_embeds"]
    place = (np.arange(out.shape[2]) % 31).astype(np.float32) * np.float32(0.0625)
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    id_part = (ids % 97).astype(np.float32) * np.float32(0.03125)
    out[:] = id_part[..., None] + place + np.where(inside, np.float32(0.5), np.float32(-0.25))[..., None]


def denoise(tensors: Mapping[str, Array], tint: Array) -> None:
    """Compute `velocity`, then `euler`, of `kernel_source`."""
    latents = tensors["latents"]
    batch, sample = len(latents), latents[0].size
    x = latents.reshape(batch, sample)
    at = np.arange(sample)
    prompt, cos, sin = (tensors[name] for name in ("prompt_embeds", "rope_cos", "rope_sin"))
    weight = tint.reshape(-1)[at // latents[0, 0].size * WIDTH + at % WIDTH]
    condition = prompt.reshape(batch, -1)[:, at % prompt[0].size] * weight
    position = (cos.reshape(-1) + sin.reshape(-1))[at % cos.size]
    found = x / (np.float32(1) + np.abs(x)) + np.float32(0.25) * np.roll(x, -1, axis=1)
    found = found + condition + np.float32(0.125) * position
    step = tensors["sigma_next"] - tensors["sigma"]
    tensors["latents_next"][:] = (x + step[:, None] * found).reshape(latents.shape)


def guide(tensors: Mapping[str, Array]) -> None:
    """Compute `guide` of `kernel_source`."""
    positive, negative, before = (tensors[f"latents_{name}"] for name in ("positive", "negative", "before"))
    scale, bound = (tensors[name][:, None, None, None] for name in ("guidance_scale", "cfg_normalization"))
    guided = positive + scale * (positive - negative)
    tensors["latents_guided"][:] = np.where(bound > 0, before + bound * (guided - before), guided)


def decode(tensors: Mapping[str, Array]) -> None:
    """Compute `decode` and `quantize`, then `sum` and `mean`, of `kernel_source`."""
    values = np.abs(tensors["latents"][0, :3]) * np.float32(64)
    levels = (np.minimum(values, np.float32(255)) + np.float32(0.5)).astype(np.uint8)
    tensors["image"][0] = levels.repeat(8, 1).repeat(8, 2).transpose(1, 2, 0)
    strided = np.zeros((-(-values.size // SUMS), SUMS), np.float32)
    strided.reshape(-1)[: values.size] = values.reshape(-1)
    partial = np.cumsum(strided, axis=0)[-1]  # in the kernels' order, which np.sum does not keep
    tensors["image_mean"][0] = np.cumsum(partial)[-1] / np.float32(values.size)
