"""Comparison of exported graphs with DiffSynth.

ONNX Runtime runs the ONNX file, DiffSynth runs its own forward pass, both in FP32 with the same weights and inputs.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from diffsynth.pipelines.z_image import model_fn_z_image_turbo

from engine.errors import BuildError
from engine.plan.manifest import GraphName, Precision, Rope, padded
from engine.sampling.rope import tables
from export.checkpoint import models
from export.checkpoint.files import Checkpoint

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)

# Relative L2 above which a build stops. z-image-nano has 6e-7 in FP32, 3e-5 with FP16 weights and 7e-4 with BF16
# weights (ONNX Runtime computes all of them in FP32); dozens of layers amplify it. A wrong graph has 1e-1 and more.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
# Of the VAE decoder in FP32, over levels of 0..255. It rounds some values to the next level, each of which counts as 1.
LEVELS_TOLERANCE = 1e-3


class Reference:
    """DiffSynth's forward passes over a checkpoint in FP32, with the inputs and outputs of the exported graphs.

    Args:
        device: torch device to run on.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.config = checkpoint.transformer.config
        self._device = device
        self._dit = models.transformer(checkpoint.transformer).load().to(device)
        models.embed_timesteps_in_fp32(self._dit)
        self._vae = models.vae_decoder(checkpoint.vae).load().to(device)
        self._text_encoder = models.load_text_encoder(checkpoint.text_encoder).to(device)

    def forward(self, graph: GraphName) -> Callable[[Arrays], Array]:
        """Return the forward pass that a graph must match."""
        known: dict[GraphName, Callable[[Arrays], Array]] = {
            "prompt_encoder": self.prompt_encoder,
            "denoiser": self.denoiser,
            "guidance": self.guidance,
            "vae_decoder": self.vae_decoder,
        }
        return known[graph]

    @torch.no_grad()
    def prompt_encoder(self, inputs: Arrays) -> Array:
        """Compute Qwen3's hidden_states[-2] of each sample alone, then apply the transformer's own context path."""
        refined = []
        for ids, length in zip(inputs["input_ids"], inputs["lengths"], strict=True):
            tokens = self._tensor(ids[None, :length])
            hidden = self._text_encoder(input_ids=tokens, output_hidden_states=True).hidden_states[-2][0]
            refined.append(self._refined_prompt(hidden))
        return torch.stack(refined).cpu().numpy()

    @torch.no_grad()
    def denoiser(self, inputs: Arrays) -> Array:
        """Run DiffSynth's model function per sample, with prompt_embeds in place of its context path."""
        steps = []
        for latents, sigma, sigma_next, prompt_embeds in zip(
            *(self._tensor(inputs[k]) for k in ("latents", "sigma", "sigma_next", "prompt_embeds")), strict=True
        ):
            flow = velocity(self._dit, latents[None], sigma[None], prompt_embeds)
            steps.append(latents + (sigma_next - sigma) * flow[0])
        return torch.stack(steps).cpu().numpy()

    @staticmethod
    def guidance(inputs: Arrays) -> Array:
        """Combine velocities as DiffSynth does: negative + (scale + 1) * (positive - negative)."""
        positive, negative = inputs["latents_positive"].astype(np.float64), inputs["latents_negative"]
        scale = 1 + inputs["guidance_scale"][:, None, None, None]
        guided: Array = negative + scale * (positive - negative)
        return guided

    @torch.no_grad()
    def vae_decoder(self, inputs: Arrays) -> Array:
        """Run DiffSynth's decoder, and clip and round its output to levels, [B, H, W, 3] uint8."""
        image = self._vae(self._tensor(inputs["latents"]))
        levels: Array = ((image + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return levels

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _refined_prompt(self, hidden: torch.Tensor) -> torch.Tensor:
        dit = self._dit
        _, [feats], meta = dit.patchify_and_embed(
            [torch.zeros(dit.in_channels, 1, 2, 2, device=self._device)], [hidden]
        )
        feats = dit.cap_embedder(feats)
        feats[meta["cap_pad_mask"][0]] = dit.cap_pad_token
        freqs = dit.rope_embedder(meta["cap_pos_ids"][0])
        x = feats[None]
        for block in dit.context_refiner:
            x = block(x, attn_mask=None, freqs_cis=freqs[None])
        refined: torch.Tensor = x[0]
        return refined


def velocity(dit: Any, latents: torch.Tensor, sigma: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    """Return the velocity of one sample by DiffSynth's model function.

    Args:
        latents: [1, 16, h, w].
        sigma: [1].
        prompt_embeds: [L, D], output of the prompt encoder.
    """
    embedder, refiner = dit.cap_embedder, dit.context_refiner
    # prompt_embeds are refined already: skip DiffSynth's embedder and refiner
    dit.cap_embedder, dit.context_refiner = torch.nn.Identity(), torch.nn.ModuleList()
    try:
        found: torch.Tensor = model_fn_z_image_turbo(
            dit, latents=latents, timestep=1000 * sigma, prompt_embeds=[prompt_embeds]
        )
        return found
    finally:
        dit.cap_embedder, dit.context_refiner = embedder, refiner


def sample_inputs(
    graph: GraphName, config: dict[str, Any], *, height: int, width: int, tokens: int, batch: int, seed: int = 0
) -> Arrays:
    """Make random inputs of a graph.

    Args:
        config: content of transformer/config.json.
        height, width: size of the latents, even.
        tokens: prompt tokens before padding; other samples of a batch may be shorter.
    """
    rng = np.random.default_rng(seed)
    length = padded(tokens)
    latents = rng.standard_normal((batch, config["in_channels"], height, width), np.float32)
    if graph == "vae_decoder":
        return {"latents": latents}
    if graph == "guidance":
        other, scale = rng.standard_normal(latents.shape, np.float32), rng.uniform(1, 7, batch).astype(np.float32)
        return {"latents_positive": latents, "latents_negative": other, "guidance_scale": scale}
    if graph == "prompt_encoder":
        shorter = rng.integers(max(1, length - 31), tokens + 1, batch - 1)
        return {
            "input_ids": rng.integers(0, 256, (batch, length), np.int64),
            "lengths": np.array([tokens, *shorter], np.int64),
        }
    sigma = rng.uniform(0.3, 1, batch).astype(np.float32)
    rope = Rope(config["rope_theta"], tuple(config["axes_dims"]), tuple(config["axes_lens"]))
    cos, sin = tables(rope, height // 2, width // 2, length)
    return {
        "latents": latents,
        "sigma": sigma,
        "sigma_next": (sigma * 0.8).astype(np.float32),
        "prompt_embeds": rng.standard_normal((batch, length, config["dim"]), np.float32),
        "rope_cos": cos,
        "rope_sin": sin,
    }


def relative_l2(got: Array, expected: Array) -> float:
    """Return ||got - expected|| / ||expected||, also of integers."""
    got, expected = (array.astype(np.result_type(array, np.float32), copy=False) for array in (got, expected))
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def check(graph: GraphName, path: Path, precision: Precision, reference: Reference) -> float:
    """Return the largest relative L2 of an exported graph over a few shapes.

    Raises:
        BuildError: an error exceeds the precision's tolerance, or is not finite.
    """
    session = _session(path, precision)
    tolerance = LEVELS_TOLERANCE if graph == "vae_decoder" and precision == "fp32" else TOLERANCE[precision]
    worst = 0.0
    for height, width, tokens, batch in ((16, 16, 20, 1), (18, 22, 40, 2)):
        inputs = sample_inputs(graph, reference.config, height=height, width=width, tokens=tokens, batch=batch)
        found = session.run(None, inputs)
        finite = all(np.isfinite(output).all() for output in found)
        error = relative_l2(found[0], reference.forward(graph)(inputs)) if finite else float("nan")
        if not error <= tolerance:  # also when it is NaN
            raise BuildError(
                f"{graph} at {height}x{width} latents, {tokens} tokens, batch {batch}: relative L2 {error:.1e} against "
                f"DiffSynth in FP32, at most {tolerance:.0e} expected of {precision}"
            )
        worst = max(worst, error)
    return worst


def _session(path: Path, precision: Precision) -> ort.InferenceSession:
    if precision != "bf16":
        return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # ONNX Runtime has no BF16 kernels on a CPU
        fp32_path = Path(folder) / path.name
        model = ir.load(path)
        widen(model, ir.DataType.FLOAT)
        ir.save(model, fp32_path, external_data=f"{fp32_path.name}.data")
        return ort.InferenceSession(str(fp32_path), providers=["CPUExecutionProvider"])


def widen(model: ir.Model, dtype: ir.DataType) -> None:
    """Replace narrower float types of a graph by `dtype`; weights keep their values."""
    narrow = [t for t in FLOATS if t.itemsize < dtype.itemsize]
    for value in model.graph.initializers.values():
        if value.dtype in narrow:
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=value.name)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in narrow:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    for value in values:
        if value.dtype in narrow:
            value.dtype = dtype
