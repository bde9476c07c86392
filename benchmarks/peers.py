"""The same prompt and seed through the peers: how far apart are the pictures, and what does it come from.

diffusers in FP32 draws the same picture. DiffSynth as shipped draws noise, rounds timesteps and keeps latents in BF16;
its modules fed with FP32 timesteps and latents are the reference of `export.parity`.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import finish
from engine.pipeline import Pipeline
from engine.request import PictureRequest
from export import models
from export.checkpoint import open_checkpoint

Pixels = np.ndarray[Any, Any]

MAX_SEQUENCE = 512


class Diffusers:
    """diffusers' ZImagePipeline in FP32 on the CPU."""

    def __init__(self, checkpoint: Path) -> None:
        from diffusers import ZImagePipeline
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        self._pipeline: Any = ZImagePipeline.from_pretrained(checkpoint).to(torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)

    def draw(self, request: PictureRequest) -> Pixels:
        """[height, width, 3] uint8; 8 forwards unless the request says otherwise."""
        output = self._pipeline(
            prompt=request.prompt,
            height=request.height,
            width=request.width,
            num_inference_steps=request.num_inference_steps or 8,
            guidance_scale=0,
            generator=torch.Generator().manual_seed(request.seed),
            max_sequence_length=MAX_SEQUENCE,
        )
        return np.asarray(output.images[0])


class DiffSynth:
    """DiffSynth's ZImagePipeline over modules in the sizes of the checkpoint's configs.

    In BF16 it is DiffSynth as shipped. In FP32, which needs its timestep embedder mended, `bf16_inputs` rounds only
    the noise and the timesteps that the model sees, so that the shares of the difference can be told apart.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.bfloat16, *, bf16_inputs: bool = False) -> None:
        from diffsynth.pipelines.z_image import ZImagePipeline
        from transformers import AutoTokenizer

        opened = open_checkpoint(str(checkpoint))
        pipeline: Any = ZImagePipeline(device="cpu", torch_dtype=dtype)
        pipeline.dit = models.transformer(opened.transformer).load().to(dtype)
        pipeline.text_encoder = models.load_text_encoder(opened.text_encoder).to(dtype)
        pipeline.vae_decoder = models.vae_decoder(opened.vae).load().to(dtype)
        pipeline.tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
        if dtype == torch.float32:
            models.embed_timesteps_in_fp32(pipeline.dit)
        if bf16_inputs:
            _round_inputs(pipeline)
        self._pipeline = pipeline

    def draw(self, request: PictureRequest) -> Pixels:
        """[height, width, 3] uint8."""
        picture = self._pipeline(
            prompt=request.prompt,
            height=request.height,
            width=request.width,
            seed=request.seed,
            num_inference_steps=request.num_inference_steps or 8,
            progress_bar_cmd=lambda steps: steps,
        )
        return np.asarray(picture)


def _round_inputs(pipeline: Any) -> None:
    draw_noise, draw_picture = pipeline.generate_noise, pipeline.model_fn
    pipeline.generate_noise = lambda *args, **kwargs: draw_noise(*args, **kwargs).bfloat16().float()
    pipeline.model_fn = lambda *args, timestep, **kwargs: draw_picture(
        *args, timestep=timestep.bfloat16().float(), **kwargs
    )


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; infinite if they are equal."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the checkpoint's folder")
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="plans built from it with --fp32")
    parser.add_argument("--prompt", default="a small red circle to the left of a large blue square")


def run(args: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    pipeline = Pipeline.load(args.engines)
    peers: dict[str, Diffusers | DiffSynth] = {
        "diffusers FP32": Diffusers(args.model),
        "DiffSynth FP32": DiffSynth(args.model, torch.float32),
        "DiffSynth FP32, noise and timesteps in BF16": DiffSynth(args.model, torch.float32, bf16_inputs=True),
        "DiffSynth BF16, as shipped": DiffSynth(args.model),
    }
    figures = []
    for height, width in ((128, 128), (192, 256), (256, 128)):
        request = PictureRequest(args.prompt, height, width, seed=7)
        ours = pipeline.generate(request).pixels
        row = {name: round(psnr(ours, peer.draw(request)), 1) for name, peer in peers.items()}
        print(f"{width}x{height}:", ", ".join(f"{name} {db} dB" for name, db in row.items()))
        figures.append({"size": f"{width}x{height}", "psnr_db": row})
    finish("peers", {"pictures": figures})
