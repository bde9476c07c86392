"""The peers: DiffSynth, DiffSynth through torch.compile, and diffusers, with the weights of a checkpoint.

They are driven through their own pipelines, so everything that those do counts. Stages end where the pipelines' own
modules end: hooks on the text encoder, the transformer and the VAE's decoder tell. What lies between two modules goes
to the later one, the last Euler update to "decode", the way from the decoder's output to pixels to "copy".
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness.device import CPU, Device
from benchmarks.harness.pixels import Pixels
from benchmarks.harness.runner import OFF, Laps
from engine.request import ImageRequest
from export.checkpoint.files import Checkpoint
from export.checkpoint.weights import Weight

STEPS = 8
MAX_SEQUENCE = 512  # tokens; both pipelines pad every prompt to it
SHAPES_COMPILED = 256  # per function, where torch gives up after 8; each size has three sequence lengths


class Peer:
    """A pipeline of somebody else's, whose modules tell `laps` when they are done."""

    name: str
    tokenizer: Any
    _laps: Laps = OFF
    _device: Device
    _pipeline: Any

    def tokens(self, prompt: str) -> int:
        return len(self.tokenizer(self._render(prompt)).input_ids)

    def generate(self, requests: Sequence[ImageRequest], laps: Laps = OFF) -> list[Pixels]:
        self._laps = laps
        try:
            return self._generate(requests)
        finally:
            self._laps = OFF

    def synchronize(self) -> None:
        self._device.synchronize()

    def close(self) -> None:
        del self._pipeline

    def _generate(self, requests: Sequence[ImageRequest]) -> list[Pixels]:
        raise NotImplementedError

    def _render(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return text

    def _lap_before(self, module: nn.Module, stage: str) -> None:
        module.register_forward_pre_hook(lambda *_: self._laps(stage))

    def _lap_after(self, module: nn.Module, stage: str) -> None:
        module.register_forward_hook(lambda *_: self._laps(stage))


class DiffSynth(Peer):
    """DiffSynth's ZImagePipeline over modules in the sizes of the checkpoint's configs.

    It generates one image at a time, so a batch is its images one after the other. In BF16 it is DiffSynth as shipped.
    In FP32, which needs its timestep embedder mended, `bf16_inputs` rounds only the noise and the timesteps that the
    model sees, so that the shares of the difference can be told apart.
    """

    name = "DiffSynth"

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.bfloat16,
        device: Device = CPU,
        *,
        bf16_inputs: bool = False,
    ) -> None:
        from transformers import AutoTokenizer

        from export.checkpoint import models

        dit = _fill(models.transformer(checkpoint.transformer), dtype, device)
        text_encoder = _fill(models.text_encoder(checkpoint.text_encoder), dtype, device)
        text_encoder.rotary_emb = type(text_encoder.rotary_emb)(config=text_encoder.config).to(device.name, dtype)
        decoder = _fill(models.vae_decoder(checkpoint.vae), dtype, device)
        if dtype == torch.float32:
            models.embed_timesteps_in_fp32(dit)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory / "tokenizer")
        self._assemble(dit, text_encoder, decoder, dtype, device)
        if bf16_inputs:
            _round_inputs(self._pipeline)

    def compiled(self) -> "CompiledDiffSynth":
        """The same modules, not copied, through torch.compile."""
        return CompiledDiffSynth(self._pipeline, self.tokenizer, self._device)

    def _assemble(self, dit: Any, text_encoder: Any, decoder: Any, dtype: torch.dtype, device: Device) -> None:
        from diffsynth.pipelines.z_image import ZImagePipeline

        self._device = device
        pipeline: Any = ZImagePipeline(device=device.name, torch_dtype=dtype)
        pipeline.dit, pipeline.text_encoder = dit, text_encoder
        pipeline.vae_decoder = nn.Sequential(decoder)  # whose hook is not the decoder's, which may be compiled
        pipeline.tokenizer = self.tokenizer
        self._lap_before(text_encoder, "tokenize")
        self._lap_after(text_encoder, "prompt_encoder")
        self._lap_after(pipeline.vae_decoder, "decode")
        forward = pipeline.model_fn

        def model_fn(*args: Any, **kwargs: Any) -> Any:
            velocity = forward(*args, **kwargs)
            self._laps("step")
            return velocity

        pipeline.model_fn = model_fn
        self._pipeline = pipeline

    def _generate(self, requests: Sequence[ImageRequest]) -> list[Pixels]:
        return [self._generate_one(request) for request in requests]

    def _generate_one(self, request: ImageRequest) -> Pixels:
        image = self._pipeline(
            prompt=request.prompt,
            height=request.height,
            width=request.width,
            seed=request.seed,
            num_inference_steps=request.num_inference_steps or STEPS,
            progress_bar_cmd=lambda steps: steps,
        )
        pixels = np.asarray(image)
        self._laps("copy")
        return pixels


class CompiledDiffSynth(DiffSynth):
    """DiffSynth with the transformer's blocks, which are what it compiles itself, and the VAE's decoder compiled.

    For each shape anew, which costs a longer first image and gives the faster kernels.
    """

    name = "DiffSynth, torch.compile"

    def __init__(self, pipeline: Any, tokenizer: Any, device: Device) -> None:
        self.tokenizer = tokenizer
        dit = copy.copy(pipeline.dit)  # the same parameters in another list of blocks
        dit._modules = dict(dit._modules)
        for blocks in ("noise_refiner", "context_refiner", "layers"):
            setattr(dit, blocks, nn.ModuleList(map(_compile, getattr(dit, blocks))))
        decoder = _compile(pipeline.vae_decoder[0])
        self._assemble(dit, pipeline.text_encoder, decoder, pipeline.torch_dtype, device)

    def _generate(self, requests: Sequence[ImageRequest]) -> list[Pixels]:
        import torch._dynamo

        with torch._dynamo.config.patch(recompile_limit=SHAPES_COMPILED), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*complex operators", UserWarning)  # its rotary embedding stays eager
            return super()._generate(requests)


class Diffusers(Peer):
    """diffusers' ZImagePipeline."""

    name = "diffusers"

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: Device = CPU) -> None:
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        self._device = device
        self._pipeline = _diffusers_pipeline(checkpoint, dtype, device)
        self._pipeline.set_progress_bar_config(disable=True)
        self.tokenizer = self._pipeline.tokenizer
        self._lap_before(self._pipeline.text_encoder, "tokenize")
        self._lap_after(self._pipeline.text_encoder, "prompt_encoder")
        self._lap_after(self._pipeline.transformer, "step")
        self._lap_after(self._pipeline.vae.decoder, "decode")

    def _generate(self, requests: Sequence[ImageRequest]) -> list[Pixels]:
        output = self._pipeline(
            prompt=[request.prompt for request in requests],
            height=requests[0].height,
            width=requests[0].width,
            num_inference_steps=requests[0].num_inference_steps or STEPS,
            guidance_scale=0,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            max_sequence_length=MAX_SEQUENCE,
        )
        pixels = [np.asarray(image) for image in output.images]
        self._laps("copy")
        return pixels


def _diffusers_pipeline(checkpoint: Checkpoint, dtype: torch.dtype, device: Device) -> Any:
    """Its modules from the configs, without weights, and then the checkpoint's own tensors under their own names."""
    import diffusers
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    parts = (checkpoint.transformer, checkpoint.vae, checkpoint.text_encoder)
    with torch.device("meta"):
        transformer = diffusers.ZImageTransformer2DModel.from_config(dict(parts[0].config))
        vae = diffusers.AutoencoderKL.from_config(dict(parts[1].config))
        text_encoder = Qwen3Model(Qwen3Config(**parts[2].config))
    for module, part, prefix in zip((transformer, vae, text_encoder), parts, ("", "", "model."), strict=True):
        names = [name for name, _ in module.named_parameters()]
        _assign(module, {name: part.weights[prefix + name] for name in names}, dtype, device)
    text_encoder.rotary_emb = type(text_encoder.rotary_emb)(config=text_encoder.config).to(device.name)
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(checkpoint.scheduler)),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(checkpoint.directory / "tokenizer"),
        transformer=transformer,
    )


def _fill(model: Any, dtype: torch.dtype, device: Device) -> Any:
    return _assign(model.module, model.weights, dtype, device)


def _assign(module: Any, weights: Mapping[str, Weight], dtype: torch.dtype, device: Device) -> Any:
    """The module with its weights, one at a time on the device in the dtype that they stay in."""
    state = {name: _load(weight, dtype, device) for name, weight in weights.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _load(weight: Weight, dtype: torch.dtype, device: Device) -> torch.Tensor:
    return weight.load().to(device=device.name, dtype=dtype)


def _compile(module: nn.Module) -> Any:
    return torch.compile(module, dynamic=False)


def _round_inputs(pipeline: Any) -> None:
    generate_noise, generate_image = pipeline.generate_noise, pipeline.model_fn
    pipeline.generate_noise = lambda *args, **kwargs: generate_noise(*args, **kwargs).bfloat16().float()
    pipeline.model_fn = lambda *args, timestep, **kwargs: generate_image(
        *args, timestep=timestep.bfloat16().float(), **kwargs
    )
