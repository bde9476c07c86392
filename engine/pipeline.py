"""The way of a prompt to a picture: encode_prompt, denoise, decode.

Knows the order of the three graphs and the shapes between them; not who executes them, not HTTP, not files.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from engine import rope
from engine.backend import load_engines
from engine.buffers import Array, Buffers
from engine.engine import Engine
from engine.errors import NonFiniteOutput, ZImageError
from engine.lora import PreparedLora
from engine.manifest import GraphName, Manifest, padded, read, resolve
from engine.noise import randn
from engine.prompt import PromptTokenizer, TokenizedPrompt
from engine.request import PictureRequest
from engine.schedule import sigmas

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]

CPU_STREAM = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture and how it came to be."""

    pixels: Array  # [height, width, 3] uint8, RGB
    seed: int
    num_inference_steps: int
    prompt: TokenizedPrompt
    seconds: dict[str, float] = field(default_factory=dict)  # wall time per stage

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


class Pipeline:
    """Draws one picture at a time from a plan directory; not safe to share between threads without a lock."""

    def __init__(self, manifest: Manifest, tokenizer: PromptTokenizer, engines: dict[GraphName, Engine]) -> None:
        self.manifest = manifest
        self._tokenizer = tokenizer
        self._engines = engines
        self._buffers = Buffers(manifest)
        self._encoded: tuple[int, ...] = ()  # the prompt whose caption the buffers hold

    @classmethod
    def load(cls, directory: Path, *, threads: int = 0, verify: bool = True) -> Self:
        """Opens a plan directory, or an `--output` directory's newest.

        Args:
            threads: CPU threads of the ONNX Runtime back end; 0 for one per core.
            verify: hash every file against the manifest first.

        Raises:
            PlanError, BackendUnavailable: why it cannot be served.
        """
        directory = resolve(directory)
        manifest = read(directory, verify=verify)
        engines = load_engines(directory, manifest, threads)
        log.info(
            "%s: %s plans of %s, %s",
            directory.name,
            manifest.target.flavor,
            manifest.model.name,
            manifest.precision,
        )
        return cls(manifest, PromptTokenizer(directory, manifest.model.prompt), engines)

    def refit(self, lora: PreparedLora | None) -> None:
        """Puts a LoRA into the plans, in place of any other; None restores them bit for bit.

        Raises:
            LoraMismatch: it was not prepared for these plans; nothing was changed.
            PlanCorrupt: the plans were altered since they were loaded; no LoRA is left in any that still runs.
        """
        if lora is not None:
            lora.require_match(self.manifest)
        self._encoded = ()
        try:
            for engine in self._engines.values():
                engine.refit(lora)
        except BaseException:
            for engine in self._engines.values():
                with suppress(ZImageError):  # such an engine refuses to run
                    engine.refit(None)
            raise

    def check(self, request: PictureRequest) -> None:
        """Raises InvalidRequest for what `generate` would refuse; any thread may call it, also while another draws."""
        self.manifest.profile_for(*self._size(request))
        self._sigmas(request)
        self._tokenizer(request.prompt)

    def generate(self, request: PictureRequest, on_step: OnStep | None = None) -> Picture:
        """Draws one picture.

        Args:
            on_step: called after each forward pass with (passes done, passes in all); what it raises ends the picture.

        Raises:
            InvalidRequest: the request cannot be drawn; nothing was computed.
            NonFiniteOutput: the model left the range of its number format.
        """
        height, width = self._size(request)
        self.manifest.profile_for(height, width)
        schedule = self._sigmas(request)
        clock = _Clock()
        prompt = self._tokenizer(request.prompt)
        clock.lap("tokenize")
        caption = self.encode_prompt(prompt)
        clock.lap("prompt_encoder")
        latents = self.denoise(caption, self.noise(request.seed, height, width), schedule, on_step)
        clock.lap("denoiser")
        pixels = self.decode(latents)
        clock.lap("vae_decoder")
        return Picture(pixels, request.seed, len(schedule) - 1, prompt, clock.seconds)

    def noise(self, seed: int, height: int, width: int) -> Array:
        """Where a picture starts: [1, 16, height / 8, width / 8] float32, as torch's CPU generator draws it."""
        model = self.manifest.model
        return randn(seed, (1, model.latent_channels, height // model.vae_scale, width // model.vae_scale))

    def encode_prompt(self, prompt: TokenizedPrompt) -> Array:
        """The prompt as the denoiser takes it: [1, padded tokens, caption_dim] float32, valid until the next call."""
        model = self.manifest.model
        length = padded(len(prompt.ids))
        bindings = {
            "input_ids": self._buffers.view("input_ids", (1, length)),
            "lengths": self._buffers.view("lengths", (1,)),
            "caption": self._buffers.view("caption", (1, length, model.caption_dim)),
        }
        if prompt.ids == self._encoded:  # the next of several pictures of one prompt: its caption is still there
            return bindings["caption"]
        self._encoded = ()
        bindings["input_ids"][:] = model.prompt.pad_token_id
        bindings["input_ids"][0, : len(prompt.ids)] = prompt.ids
        bindings["lengths"][:] = len(prompt.ids)
        self._engines["prompt_encoder"].enqueue(CPU_STREAM, bindings)
        self._encoded = prompt.ids
        return bindings["caption"]

    def denoise(self, caption: Array, noise: Array, schedule: Array, on_step: OnStep | None = None) -> Array:
        """The Euler loop over two latents buffers that take turns.

        Args:
            caption: [B, L, caption_dim] float32.
            noise: [B, 16, h, w] float32.
            schedule: [steps + 1] float32, from `engine.schedule.sigmas`.

        Returns:
            [B, 16, h, w] float32, valid until the next call.
        """
        batch, _, h, w = noise.shape
        latents = [self._buffers.view(name, noise.shape) for name in ("latents", "latents_next")]
        latents[0][:] = noise
        constant = {"caption": caption, **self._rope(h, w, caption.shape[1]), **self._sigma_views(batch)}
        steps = len(schedule) - 1
        for step in range(steps):
            constant["sigma"][:], constant["sigma_next"][:] = schedule[step], schedule[step + 1]
            turn = {"latents": latents[step % 2], "latents_next": latents[(step + 1) % 2]}
            self._engines["denoiser"].enqueue(CPU_STREAM, constant | turn)
            _require_finite(turn["latents_next"], f"latents after step {step + 1} of {steps}")
            if on_step is not None:
                on_step(step + 1, steps)
        return latents[steps % 2]

    def decode(self, latents: Array) -> Array:
        """The picture of [1, 16, h, w] latents: [8h, 8w, 3] uint8, RGB."""
        scale = self.manifest.model.vae_scale
        batch, _, h, w = latents.shape
        image = self._buffers.view("image", (batch, h * scale, w * scale, 3))
        self._engines["vae_decoder"].enqueue(CPU_STREAM, {"latents": latents, "image": image})
        _require_finite(image, "picture")
        np.clip(image, 0, 255, out=image)
        pixels: Array = np.rint(image[0], out=image[0]).astype(np.uint8)
        return pixels

    def _rope(self, h: int, w: int, caption: int) -> dict[str, Array]:
        patch = self.manifest.model.patch_size
        cos, sin = rope.tables(self.manifest.model.rope, h // patch, w // patch, caption)
        views = {
            "rope_cos": self._buffers.view("rope_cos", cos.shape),
            "rope_sin": self._buffers.view("rope_sin", sin.shape),
        }
        views["rope_cos"][:], views["rope_sin"][:] = cos, sin
        return views

    def _sigma_views(self, batch: int) -> dict[str, Array]:
        return {name: self._buffers.view(name, (batch,)) for name in ("sigma", "sigma_next")}

    def _size(self, request: PictureRequest) -> tuple[int, int]:
        height, width = self.manifest.default_size
        return (
            height if request.height is None else request.height,
            width if request.width is None else request.width,
        )

    def _sigmas(self, request: PictureRequest) -> Array:
        model = self.manifest.model
        steps = model.default_steps if request.num_inference_steps is None else request.num_inference_steps
        return sigmas(steps, model.schedule_shift)


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def _require_finite(array: Array, what: str) -> None:
    with np.errstate(all="ignore"):
        total = array.sum()  # one NaN or Inf makes it one, and it allocates nothing
    if not np.isfinite(total):
        raise NonFiniteOutput(
            f"NaN or Inf in the {what}, so no picture is returned; "
            "build the plans with --bf16 or --fp32 if this model leaves FP16's range"
        )
