"""The way of a prompt to a picture: encode_prompt, denoise, decode.

Knows the order of the three graphs and the shapes between them; not who executes them or where their tensors lie, not
HTTP, not files. On a GPU everything is enqueued, and the host waits for a step while the next one runs.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from engine import backend, rope
from engine.engine import Backend
from engine.errors import NonFiniteOutput, ZImageError
from engine.lora import PreparedLora
from engine.manifest import SEQUENCE_MULTIPLE, GraphName, Manifest, padded, read, resolve
from engine.memory import Array, Mark, Reading, Tensor
from engine.noise import randn
from engine.options import RuntimeOptions
from engine.prompt import PromptTokenizer, TokenizedPrompt
from engine.request import PictureRequest
from engine.schedule import sigmas

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]

WARM_PASSES = 7  # after as many with the same tensors a CUDA graph was captured and compared
WARM_CAPTIONS = 4  # lengths that a size is warmed up for: 32, 64, 96 and 128 tokens


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture and how it came to be."""

    pixels: Array  # [height, width, 3] uint8, RGB
    seed: int
    num_inference_steps: int
    prompt: TokenizedPrompt
    seconds: dict[str, float] = field(default_factory=dict)  # per stage; on a GPU, of its own clock

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


class Decoded:
    """A decoded picture on its way to the host."""

    def __init__(self, image: Reading, decoded: Mark) -> None:
        self._image = image
        self.decoded = decoded  # passed once the image is here

    def wait(self) -> Array:
        """[height, width, 3] uint8, RGB. Raises NonFiniteOutput."""
        image = self._image.wait()
        _require_finite(image, "picture")
        np.clip(image, 0, 255, out=image)
        pixels: Array = np.rint(image[0], out=image[0]).astype(np.uint8)
        return pixels


class Drawing:
    """A picture of which everything is enqueued. Any thread may finish it, while the next one is being drawn."""

    def __init__(
        self, decoded: Decoded, seed: int, steps: int, prompt: TokenizedPrompt, tokenize: float, marks: Sequence[Mark]
    ) -> None:
        self._decoded, self._marks = decoded, marks
        self._about = (seed, steps, prompt)
        self._seconds = {"tokenize": tokenize}
        self._outcome: Array | ZImageError | None = None
        self._lock = threading.Lock()

    def settle(self) -> None:
        """Takes the pixels out of the buffers, if that has not been done."""
        with self._lock:
            if self._outcome is not None:
                return
            started = time.perf_counter()
            try:
                self._outcome = self._decoded.wait()
                stages = ("prompt_encoder", "denoiser", "vae_decoder")
                for stage, (start, end) in zip(stages, pairwise(self._marks), strict=True):
                    self._seconds[stage] = start.seconds_until(end)
                self._seconds["pixels"] = time.perf_counter() - started
            except ZImageError as error:
                self._outcome = error

    def finish(self) -> Picture:
        """Waits for the picture.

        Raises:
            NonFiniteOutput: the model left the range of its number format.
            DeviceError: the GPU failed.
        """
        self.settle()
        if isinstance(self._outcome, ZImageError):
            raise self._outcome
        assert self._outcome is not None
        return Picture(self._outcome, *self._about, self._seconds)


class Pipeline:
    """Draws one picture after the other from a plan directory; not safe to share between threads without a lock."""

    def __init__(self, manifest: Manifest, tokenizer: PromptTokenizer, loaded: Backend) -> None:
        self.manifest = manifest
        self.tokenize = tokenizer
        self._engines, self._memory, self._close = loaded.engines, loaded.memory, loaded.close
        self._encoded: tuple[tuple[int, ...], ...] = ()  # the prompts whose captions the buffers hold
        self._positions: tuple[int, int, int] | None = None  # what the rotary tables in the buffers are of
        self._last: Drawing | None = None

    @classmethod
    def load(cls, directory: Path, options: RuntimeOptions | None = None, *, verify: bool = True) -> Self:
        """Opens a plan directory, or an `--output` directory's newest.

        Args:
            verify: hash every file against the manifest first.

        Raises:
            PlanError, BackendUnavailable, OutOfDeviceMemory: why it cannot be served.
            UnsupportedShape: no profile covers a size of `options.warm_up`.
        """
        options = options or RuntimeOptions()
        directory = resolve(directory)
        manifest = read(directory, verify=verify)
        served = replace(manifest, profiles=tuple(manifest.choose_profiles(options.profiles).values()))
        for height, width in options.warm_up:
            served.profile_for(height, width)
        loaded = backend.load(directory, manifest, options)
        log.info(
            "%s: %s plans of %s, %s",
            directory.name,
            manifest.target.flavor,
            manifest.model.name,
            manifest.precision,
        )
        try:
            pipeline = cls(served, PromptTokenizer(directory, manifest.model.prompt), loaded)
            pipeline.warm_up(options.warm_up)
        except BaseException:
            loaded.close()
            raise
        return pipeline

    def close(self) -> None:
        """Frees everything; pictures that were not finished are lost."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refit(self, lora: PreparedLora | None) -> float:
        """Puts a LoRA into the plans, in place of any other; None restores them bit for bit.

        Returns:
            Seconds that it took.

        Raises:
            LoraMismatch: it was not prepared for these plans; nothing was changed.
            PlanCorrupt: the plans were altered since they were loaded; no LoRA is left in any that still runs.
        """
        if lora is not None:
            lora.require_match(self.manifest)
        self._encoded = ()
        started = time.perf_counter()
        try:
            for engine in self._engines.values():
                engine.refit(lora)
            self.synchronize()
        except BaseException:
            for engine in self._engines.values():
                with suppress(ZImageError):  # such an engine refuses to run
                    engine.refit(None)
            raise
        return time.perf_counter() - started

    def warm_up(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Draws each size (height, width) with captions of the usual lengths, and keeps what was prepared for them."""
        pad = self.manifest.model.prompt.pad_token_id
        for engine in self._engines.values():
            engine.keep(True)
        schedule = sigmas(2 * WARM_PASSES, self.manifest.model.schedule_shift)  # latents take turns
        for height, width in sizes:
            for length in range(SEQUENCE_MULTIPLE, (WARM_CAPTIONS + 1) * SEQUENCE_MULTIPLE, SEQUENCE_MULTIPLE):
                for _ in range(WARM_PASSES):
                    self._encoded = ()
                    caption = self.encode_prompt([TokenizedPrompt((pad,) * length, "", "")])
                latents = self.denoise(caption, self.noise(0, height, width), schedule)
            for _ in range(WARM_PASSES):
                self.decode(latents).wait()
        for engine in self._engines.values():
            engine.keep(False)

    def check(self, request: PictureRequest) -> None:
        """Raises InvalidRequest for what `generate` would refuse; any thread may call it, also while another draws."""
        self.manifest.profile_for(*self._size(request))
        self._sigmas(request)
        self.tokenize(request.prompt)

    def generate(self, request: PictureRequest, on_step: OnStep | None = None) -> Picture:
        """Draws one picture: `start` and `finish` in one.

        Args:
            on_step: called after each forward pass with (passes done, passes in all); what it raises ends the picture.

        Raises:
            InvalidRequest: the request cannot be drawn; nothing was computed.
            NonFiniteOutput: the model left the range of its number format.
            DeviceError: the GPU failed.
        """
        return self.start(request, on_step).finish()

    def start(self, request: PictureRequest, on_step: OnStep | None = None) -> Drawing:
        """Draws up to the last step and enqueues the rest, so that another thread can wait for it and encode it."""
        try:
            return self._start(request, on_step)
        except BaseException:
            if self._last is not None:
                self._last.settle()  # while its marks still stand
            raise

    def _start(self, request: PictureRequest, on_step: OnStep | None) -> Drawing:
        height, width = self._size(request)
        self.manifest.profile_for(height, width)
        schedule = self._sigmas(request)
        started = time.perf_counter()
        prompt = self.tokenize(request.prompt)
        tokenized = time.perf_counter() - started
        marks = [self._memory.mark()]
        caption = self.encode_prompt([prompt])
        marks.append(self._memory.mark())
        latents = self.denoise(caption, self.noise(request.seed, height, width), schedule, on_step)
        marks.append(self._memory.mark())
        if self._last is not None:
            self._last.settle()  # its place in the buffers is the next but one's
        decoded = self.decode(latents)
        marks.append(decoded.decoded)
        self._last = Drawing(decoded, request.seed, len(schedule) - 1, prompt, tokenized, marks)
        return self._last

    def noise(self, seed: int, height: int, width: int) -> Array:
        """Where a picture starts: [1, 16, height / 8, width / 8] float32, as torch's CPU generator draws it."""
        model = self.manifest.model
        return randn(seed, (1, model.latent_channels, height // model.vae_scale, width // model.vae_scale))

    def encode_prompt(self, prompts: Sequence[TokenizedPrompt]) -> Tensor:
        """Prompts as the denoiser takes them: [B, L, caption_dim] float32, valid until the next call.

        Args:
            prompts: of one padded length L.
        """
        model = self.manifest.model
        batch, length = len(prompts), padded(len(prompts[0].ids))
        caption = self._memory.view("caption", (batch, length, model.caption_dim))
        wanted = tuple(prompt.ids for prompt in prompts)
        if wanted == self._encoded:  # the next of several pictures of one prompt: its caption is still there
            return caption
        self._encoded = ()
        ids = np.full((batch, length), model.prompt.pad_token_id, np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            assert padded(len(prompt.ids)) == length, "a batch has one padded length"
            row[: len(prompt.ids)] = prompt.ids
        bindings = {
            "input_ids": self._memory.write("input_ids", ids),
            "lengths": self._memory.write("lengths", np.array([len(one) for one in wanted])),
            "caption": caption,
        }
        self._enqueue("prompt_encoder", bindings)
        self._encoded = wanted
        return caption

    def denoise(self, caption: Tensor, noise: Array, schedule: Array, on_step: OnStep | None = None) -> Tensor:
        """The Euler loop over two latents buffers that take turns.

        Args:
            caption: [B, L, caption_dim] float32.
            noise: [B, 16, h, w] float32.
            schedule: [steps + 1] float32, from `engine.schedule.sigmas`.
            on_step: hears of a step when its latents have arrived; on a GPU the next one is running by then.

        Returns:
            [B, 16, h, w] float32, valid until the next call.
        """
        batch, _, h, w = noise.shape
        latents = (self._memory.write("latents", noise), self._memory.view("latents_next", noise.shape))
        constant = {"caption": caption, **self._rope(h, w, caption.shape[1])}
        levels = np.repeat(schedule[:, None], batch, axis=1)  # [steps + 1, B]
        steps = len(schedule) - 1
        arriving: deque[tuple[int, Reading]] = deque()
        for step in range(steps):
            sigma = {
                "sigma": self._memory.write("sigma", levels[step]),
                "sigma_next": self._memory.write("sigma_next", levels[step + 1]),
            }
            turn = {"latents": latents[step % 2], "latents_next": latents[(step + 1) % 2]}
            self._enqueue("denoiser", constant | sigma | turn)
            arriving.append((step + 1, self._memory.read(turn["latents_next"])))
            while len(arriving) > (self._memory.ahead if step + 1 < steps else 0):
                done, reading = arriving.popleft()
                _require_finite(reading.wait(), f"latents after step {done} of {steps}")
                if on_step is not None:
                    on_step(done, steps)
        return latents[steps % 2]

    def decode(self, latents: Tensor, index: int = 0) -> Decoded:
        """One picture of [B, 16, h, w] latents."""
        scale = self.manifest.model.vae_scale
        one = self._memory.row(latents, index)
        _, _, h, w = one.shape
        image = self._memory.view("image", (1, h * scale, w * scale, 3))
        self._enqueue("vae_decoder", {"latents": one, "image": image})
        decoded = self._memory.mark()  # before the copy, which then waits for it
        return Decoded(self._memory.read(image), decoded)

    def synchronize(self) -> None:
        """Waits until nothing is running."""
        self._memory.synchronize()

    def _enqueue(self, graph: GraphName, bindings: dict[str, Any]) -> None:
        for spec in self.manifest.graphs[graph].outputs:
            self._memory.claim(bindings[spec.name])
        self._engines[graph].enqueue(self._memory.stream, bindings)

    def _rope(self, h: int, w: int, caption: int) -> dict[str, Tensor]:
        """The rotary tables of [h, w] latents, written when they change."""
        model = self.manifest.model
        if self._positions != (h, w, caption):
            self._positions = None
            cos, sin = rope.tables(model.rope, h // model.patch_size, w // model.patch_size, caption)
            self._tables = {
                "rope_cos": self._memory.write("rope_cos", cos),
                "rope_sin": self._memory.write("rope_sin", sin),
            }
            self._positions = (h, w, caption)
        return self._tables

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


def _require_finite(array: Array, what: str) -> None:
    with np.errstate(all="ignore"):
        total = array.sum()  # one NaN or Inf makes it one, and it allocates nothing
    if not np.isfinite(total):
        raise NonFiniteOutput(
            f"NaN or Inf in the {what}, so no picture is returned; "
            "build the plans with --bf16 or --fp32 if this model leaves FP16's range"
        )
