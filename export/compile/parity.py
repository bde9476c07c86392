"""DiffSynth's own forward passes, which exported graphs are compared with, and inputs for both."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from diffsynth.pipelines.z_image import model_fn_z_image_turbo

from engine.plan.manifest import GraphName, Rope, padded
from engine.sampling.rope import tables
from export.checkpoint import models
from export.checkpoint.files import Checkpoint
from export.compile.layer_stream import LayerStream
from export.compile.rounding import Rounding, round_products, rounded_pass
from export.graphs.vae_encoder import LOG_VARIANCE

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Tensors = dict[str, torch.Tensor]

FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)

# Inputs with a row per sample, in the order of the forward passes below
SAMPLED: dict[GraphName, tuple[str, ...]] = {
    "prompt_encoder": ("input_ids", "lengths"),
    "denoiser": ("latents", "sigma", "sigma_next", "prompt_embeds"),
    "guidance": ("latents_positive", "latents_negative", "latents_before", "guidance_scale", "cfg_normalization"),
    "vae_decoder": ("latents",),
    "vae_encoder": ("init_image", "posterior_noise"),
    "blend": ("latents_to_blend", "image_latents", "noise", "mask", "blend_sigma"),
}
EMBEDDING = "embed_tokens.weight"  # of the text encoder; passes read the rows of their tokens only


class Reference:
    """DiffSynth's forward passes over a checkpoint in FP32, with the inputs and outputs of the exported graphs.

    The weights of both transformers are in memory one layer at a time, those of the VAE as a whole.

    Args:
        device: torch device to run on.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.config = checkpoint.transformer.config
        self._device = device
        self._layers = LayerStream(device)
        self._dit = self._layers.add(models.transformer(checkpoint.transformer))
        models.embed_timesteps_in_fp32(self._dit)
        self._vae = self._layers.add(models.vae_decoder(checkpoint.vae), whole=True)
        encoder = models.vae_encoder(checkpoint.vae)
        self._vae_encoder = None if encoder is None else self._layers.add(encoder, whole=True)
        text_encoder = models.text_encoder(checkpoint.text_encoder)
        self._embedding = text_encoder.weights[EMBEDDING]
        self._text_encoder = self._layers.add(text_encoder, without=[EMBEDDING])
        models.make_rotary_buffers(self._text_encoder)
        for module in (self._dit, self._vae, self._vae_encoder, self._text_encoder):
            if module is not None:
                round_products(module)

    def run(
        self, graph: GraphName, batches: Sequence[Arrays], rounding: Sequence[Rounding | None] | None = None
    ) -> list[Arrays]:
        """Return the outputs of a graph by name, for several sets of inputs. Weights are read once for all.

        Args:
            rounding: for each set, the rounding of inputs and results of products; None for FP32.
        """
        sample = self._samples[graph]
        passes, counts = [], []
        for inputs, own in zip(batches, rounding or [None] * len(batches), strict=True):
            rows = list(zip(*(self._tensor(inputs[name]) for name in SAMPLED[graph]), strict=True))
            passes += [partial(rounded_pass, own, partial(sample, *row)) for row in rows]
            counts.append(len(rows))
        with refined_prompts(self._dit) if graph == "denoiser" else nullcontext():
            done = iter(self._layers.run(passes))
        return [_stack(list(islice(done, count))) for count in counts]

    def forward(self, graph: GraphName) -> Callable[[Arrays], Array]:
        """Return the forward pass that the first output of a graph must match."""

        def run(inputs: Arrays) -> Array:
            [outputs] = self.run(graph, [inputs])
            output, *_ = outputs.values()
            return output

        return run

    def prompt_encoder(self, inputs: Arrays) -> Array:
        """Compute Qwen3's hidden_states[-2] of each sample alone, then apply the transformer's own context path."""
        return self.forward("prompt_encoder")(inputs)

    def denoiser(self, inputs: Arrays) -> Array:
        """Run DiffSynth's model function per sample, with prompt_embeds in place of its context path."""
        return self.forward("denoiser")(inputs)

    def vae_decoder(self, inputs: Arrays) -> Array:
        """Run DiffSynth's decoder, and clip and round its output to levels, [B, H, W, 3] uint8."""
        return self.forward("vae_decoder")(inputs)

    @property
    def _samples(self) -> dict[GraphName, Callable[..., Tensors]]:
        return {
            "prompt_encoder": self._encode,
            "denoiser": self._step,
            "guidance": self._guide,
            "vae_decoder": self._decode,
            "vae_encoder": self._encode_image,
            "blend": self._blend,
        }

    def _encode(self, ids: torch.Tensor, length: torch.Tensor) -> Tensors:
        embedded = self._embedding.load()[ids[None, :length].cpu()].float().to(self._device)
        hidden = self._text_encoder(inputs_embeds=embedded, output_hidden_states=True).hidden_states[-2][0]
        return {"prompt_embeds": self._refined_prompt(hidden)}

    def _step(
        self, latents: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> Tensors:
        flow = _velocity(self._dit, latents[None], sigma[None], prompt_embeds)
        return {"latents_next": latents + (sigma_next - sigma) * flow[0]}

    @staticmethod
    def _guide(
        positive: torch.Tensor,
        negative: torch.Tensor,
        before: torch.Tensor,
        scale: torch.Tensor,
        normalization: torch.Tensor,
    ) -> Tensors:
        """Combine velocities as DiffSynth does, whose scale is larger by one, in diffusers' bound of the norm."""
        velocity, unwanted = (positive - before).double(), (negative - before).double()
        guided = unwanted + (scale + 1).double() * (velocity - unwanted)
        most = normalization.double() * torch.linalg.vector_norm(velocity)
        if normalization > 0 and torch.linalg.vector_norm(guided) > most:
            guided *= most / torch.linalg.vector_norm(guided)
        return {"latents_guided": (before + guided).float()}

    def _decode(self, latents: torch.Tensor) -> Tensors:
        pixels = (self._vae(latents[None])[0] + 1) * 127.5
        return {"image": pixels.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0), "image_mean": pixels.mean()}

    def _encode_image(self, init_image: torch.Tensor, posterior_noise: torch.Tensor) -> Tensors:
        """Run DiffSynth's encoder, which returns the scaled mean, and add diffusers' noise from the log-variance."""
        encoder = self._vae_encoder
        assert encoder is not None, "plans of a VAE without an encoder have no such graph"
        pixels = init_image.permute(2, 0, 1)[None].contiguous().float() / 127.5 - 1
        with recorded_output(encoder.conv_out) as outputs:
            [mean] = encoder(pixels)
        _, log_variance = outputs[0][0].chunk(2)
        deviation = (log_variance.clamp(*LOG_VARIANCE) / 2).exp() * encoder.scaling_factor
        return {"image_latents": mean + deviation * posterior_noise}

    @staticmethod
    def _blend(
        latents: torch.Tensor, image: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor, sigma: torch.Tensor
    ) -> Tensors:
        """Blend as diffusers does."""
        return {"latents_blended": (1 - mask) * (sigma * noise + (1 - sigma) * image) + mask * latents}

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


@contextmanager
def recorded_output(layer: Any) -> Iterator[list[torch.Tensor]]:
    """Record what a layer returns."""
    outputs: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def _stack(samples: Sequence[Tensors]) -> Arrays:
    return {name: torch.stack([sample[name] for sample in samples]).cpu().numpy() for name in samples[0]}


def velocity(dit: Any, latents: torch.Tensor, sigma: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    """Return the velocity of one sample by DiffSynth's model function.

    Args:
        latents: [1, 16, h, w].
        sigma: [1].
        prompt_embeds: [L, D], output of the prompt encoder.
    """
    with refined_prompts(dit):
        return _velocity(dit, latents, sigma, prompt_embeds)


@contextmanager
def refined_prompts(dit: Any) -> Iterator[None]:
    """Let DiffSynth's model function take prompts that its embedder and refiner have been applied to."""
    embedder, refiner = dit.cap_embedder, dit.context_refiner
    dit.cap_embedder, dit.context_refiner = torch.nn.Identity(), torch.nn.ModuleList()
    try:
        yield
    finally:
        dit.cap_embedder, dit.context_refiner = embedder, refiner


def _velocity(dit: Any, latents: torch.Tensor, sigma: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model_fn_z_image_turbo(
        dit, latents=latents, timestep=1000 * sigma, prompt_embeds=[prompt_embeds]
    )
    return found


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
    if graph == "vae_encoder":
        return encoder_inputs(latents, rng, height * 8, width * 8)
    if graph == "blend":
        return blend_inputs(latents, rng)
    if graph == "guidance":
        normalization = np.arange(batch, dtype=np.float32) / 2  # 0 for the first sample
        return guidance_inputs(latents, normalization, rng)
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


def encoder_inputs(posterior_noise: Array, rng: np.random.Generator, height: int, width: int) -> Arrays:
    """Make inputs of the VAE encoder; [height, width] in pixels."""
    image = rng.integers(0, 256, (len(posterior_noise), height, width, 3), np.uint8)
    return {"init_image": image, "posterior_noise": posterior_noise}


def blend_inputs(latents: Array, rng: np.random.Generator) -> Arrays:
    """Make inputs of the blend for latents [B, C, h, w]."""
    batch, _, height, width = latents.shape
    return {
        "latents_to_blend": latents,
        "image_latents": rng.standard_normal(latents.shape, np.float32),
        "noise": rng.standard_normal(latents.shape, np.float32),
        "mask": rng.integers(0, 2, (batch, 1, height, width)).astype(np.float32),
        "blend_sigma": rng.uniform(0, 1, batch).astype(np.float32),
    }


def guidance_inputs(positive: Array, normalization: Array, rng: np.random.Generator) -> Arrays:
    """Make random inputs of the guidance graph for positive latents [B, 16, h, w] and normalizations [B]."""
    negative, before = rng.standard_normal((2, *positive.shape), np.float32)
    return {
        "latents_positive": positive,
        "latents_negative": negative,
        "latents_before": before,
        "guidance_scale": rng.uniform(1, 7, len(positive)).astype(np.float32),
        "cfg_normalization": normalization,
    }


def relative_l2(got: Array, expected: Array) -> float:
    """Return ||got - expected|| / ||expected||, also of integers."""
    got, expected = (array.astype(np.result_type(array, np.float32), copy=False) for array in (got, expected))
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


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
