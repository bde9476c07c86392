"""The peers: DiffSynth, DiffSynth through torch.compile, and diffusers, with the weights of a checkpoint.

Each peer runs through its own pipeline, so all of the pipeline's work counts. Hooks on the text encoder, the
transformer and the VAE decoder mark the ends of stages. Work between two modules counts for the later one: the last
Euler update for "decode", and the conversion of the decoder's output to pixels for "copy".
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import nn

from benchmarks.harness.device import CPU, Device
from benchmarks.harness.pixels import Pixels
from benchmarks.harness.runner import NO_TIMER, StageTimer
from engine.request import ImageRequest
from export.checkpoint.files import Checkpoint
from export.checkpoint.weights import Weight

STEPS = 8
MAX_SEQUENCE = 512  # tokens; both pipelines pad every prompt to it
SHAPES_COMPILED = 256  # per function; torch's default limit is 8, and each size has three sequence lengths


class Peer:
    """A pipeline of another project, with hooks that record stages."""

    name: str
    tokenizer: Any
    _timer: StageTimer = NO_TIMER
    _device: Device
    _pipeline: Any

    def tokens(self, prompt: str) -> int:
        return len(self.tokenizer(self._render(prompt)).input_ids)

    def generate(self, requests: Sequence[ImageRequest], timer: StageTimer = NO_TIMER) -> list[Pixels]:
        self._timer = timer
        try:
            return self._generate(requests)
        finally:
            self._timer = NO_TIMER

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

    def _record_before(self, module: nn.Module, stage: str) -> None:
        module.register_forward_pre_hook(lambda *_: self._timer.record(stage))

    def _record_after(self, module: nn.Module, stage: str) -> None:
        module.register_forward_hook(lambda *_: self._timer.record(stage))


class DiffSynth(Peer):
    """DiffSynth's ZImagePipeline over modules in the sizes of the checkpoint's configs.

    It generates one image at a time; a batch is generated image by image. In BF16 it is DiffSynth as shipped. FP32
    needs a fix to its timestep embedder.

    Args:
        bf16_inputs: round the noise and the timesteps to BF16 while the model stays in FP32, which separates the two
            sources of the difference from BF16.
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
        """Return a runner that shares these modules and runs them through torch.compile."""
        return CompiledDiffSynth(self._pipeline, self.tokenizer, self._device)

    def _assemble(self, dit: Any, text_encoder: Any, decoder: Any, dtype: torch.dtype, device: Device) -> None:
        from diffsynth.pipelines.z_image import ZImagePipeline

        self._device = device
        pipeline: Any = ZImagePipeline(device=device.name, torch_dtype=dtype)
        pipeline.dit, pipeline.text_encoder = dit, text_encoder
        pipeline.vae_decoder = nn.Sequential(decoder)  # takes the hook in place of the decoder, which may be compiled
        pipeline.tokenizer = self.tokenizer
        self._record_before(text_encoder, "tokenize")
        self._record_after(text_encoder, "prompt_encoder")
        self._record_after(pipeline.vae_decoder, "decode")
        forward = pipeline.model_fn

        def model_fn(*args: Any, **kwargs: Any) -> Any:
            velocity = forward(*args, **kwargs)
            self._timer.record("step")
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
        self._timer.record("copy")
        return pixels


class CompiledDiffSynth(DiffSynth):
    """DiffSynth with compiled transformer blocks, as in its own compilation, and a compiled VAE decoder.

    Every shape is compiled separately: the first image takes longer, later ones run faster kernels.
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
    """diffusers' ZImagePipeline.

    Attributes:
        forwards: forward passes of the transformer so far, counted by image.
    """

    name = "diffusers"
    forwards = 0

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: Device = CPU) -> None:
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        self._device = device
        self._pipeline = _diffusers_pipeline(checkpoint, dtype, device)
        self._pipeline.set_progress_bar_config(disable=True)
        self.tokenizer = self._pipeline.tokenizer
        self._record_before(self._pipeline.text_encoder, "tokenize")
        self._record_after(self._pipeline.text_encoder, "prompt_encoder")
        self._record_after(self._pipeline.transformer, "step")
        self._pipeline.transformer.register_forward_pre_hook(self._count)
        self._record_after(self._pipeline.vae.decoder, "decode")

    def _count(self, _module: nn.Module, arguments: Any) -> None:
        latents, *_ = arguments
        self.forwards += len(latents)

    def edit(self, request: ImageRequest, image: Image, mask: Image | None = None) -> Pixels:
        """Return the image of `ZImageImg2ImgPipeline` or, with a mask, of `ZImageInpaintPipeline`.

        Args:
            request: with a strength in its `edit`; its size is ignored, as the image has one.
            image: as it is given to diffusers, which resizes it itself.
        """
        import diffusers

        assert request.edit is not None
        kind = diffusers.ZImageImg2ImgPipeline if mask is None else diffusers.ZImageInpaintPipeline
        pipeline = kind(**self._pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        output = pipeline(
            prompt=[request.prompt],
            negative_prompt=[request.negative_prompt],
            image=image,
            strength=request.edit.strength,
            generator=torch.Generator().manual_seed(request.seed),
            **_settings(request),
            **({} if mask is None else {"mask_image": mask}),
        )
        return np.asarray(output.images[0])

    def _generate(self, requests: Sequence[ImageRequest]) -> list[Pixels]:
        output = self._pipeline(
            prompt=[request.prompt for request in requests],
            negative_prompt=[request.negative_prompt for request in requests],
            height=requests[0].height,
            width=requests[0].width,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            **_settings(requests[0]),
        )
        pixels = [np.asarray(image) for image in output.images]
        self._timer.record("copy")
        return pixels


def _settings(request: ImageRequest) -> dict[str, Any]:
    """Return the settings of a request that the images of a batch share, as arguments of diffusers' pipelines."""
    return {
        "num_inference_steps": request.num_inference_steps or STEPS,
        "guidance_scale": request.guidance_scale or 0.0,
        "cfg_normalization": request.cfg_normalization,
        "cfg_truncation": request.cfg_truncation,
        "max_sequence_length": MAX_SEQUENCE,
    }


def _diffusers_pipeline(checkpoint: Checkpoint, dtype: torch.dtype, device: Device) -> Any:
    """Make diffusers' modules from the configs, without weights, and assign the checkpoint's tensors to them."""
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
    """Assign the weights, each moved to the device and cast on its own, and return the module."""
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
