"""From a prompt to an image: encode_prompt, denoise, decode.

Knows the order of the graphs; not backends or HTTP. On a GPU all work is enqueued, and the host waits for a step while
the next one runs. The pipeline generates one image or one batch at a time; in `engine.scheduler.loop`, images join and
leave at step boundaries.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from engine import self_test
from engine.array import Array
from engine.backends.base import Backend
from engine.backends.load import load_backend
from engine.backends.memory import Readback, Tensor
from engine.errors import InvalidRequest
from engine.graph_runner import GraphRunner
from engine.images.generated import GeneratedImage
from engine.images.mask_crop import paste_back
from engine.init_image import InitImage
from engine.options import RuntimeOptions
from engine.plan.directory import read, resolve
from engine.plan.lora import PreparedLora
from engine.plan.manifest import SEQUENCE_MULTIPLE, Manifest, padded
from engine.request import ImageRequest
from engine.sampling.finite import require_finite
from engine.sampling.noise import Generator, randn
from engine.sampling.schedule import sigmas
from engine.sampling.tokenizer import PromptTokenizer, TokenizedPrompt
from engine.size import Size
from engine.stages import StageTimes

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]

WARM_PASSES = 5  # with the same tensors; a CUDA graph has been captured and compared by then


class EncodedImage(NamedTuple):
    """An init image as latents.

    Attributes:
        latents: [1, 16, h, w], in the tensor `image_latents`.
        mask: [1, 1, h, w] float32 of zeros and ones; None if the whole image is drawn anew.
    """

    latents: Tensor
    mask: Array | None


class Pipeline(GraphRunner):
    """Generates images from a plan directory, one after the other. Threads that share it need a lock."""

    def __init__(self, manifest: Manifest, tokenizer: PromptTokenizer, backend: Backend) -> None:
        super().__init__(manifest, backend)
        self.tokenize = tokenizer

    @classmethod
    def load(cls, directory: Path, options: RuntimeOptions | None = None, *, verify: bool = True) -> Self:
        """Load a plan directory, or the newest one in an `--output` directory.

        Args:
            verify: hash every file against the manifest first.

        Raises:
            PlanError, BackendUnavailable, OutOfDeviceMemory: the plans cannot be loaded.
            SelfTestFailed: this device computes something else from them than FP32 does.
            UnsupportedShape: no profile covers a size of `options.warm_up`.
        """
        options = options or RuntimeOptions()
        directory = resolve(directory)
        manifest = read(directory, verify=verify)
        loaded = manifest if options.image_input else manifest.without_image_input()
        served = replace(loaded, profiles=tuple(manifest.choose_profiles(options.profiles).values()))
        for size in options.warm_up:
            served.profile_for(size)
        backend = load_backend(directory, manifest, options)
        facts = manifest.target.flavor, manifest.model.name, manifest.precision
        log.info("loaded %s: %s plans of %s, %s", directory.name, *facts)
        try:
            if options.self_test and manifest.target.flavor != "onnx":
                self_test.require(directory, served, backend)
            pipeline = cls(served, PromptTokenizer(directory, manifest.model.prompt), backend)
            warm_up(pipeline, options.warm_up)
        except BaseException:
            backend.close()
            raise
        return pipeline

    def close(self) -> None:
        """Free everything. Unfinished images are lost."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refit(self, lora: PreparedLora | None) -> float:
        """Apply a LoRA to the plans in place of any other; None and a strength of 0 restore them bit for bit.

        Returns:
            Seconds that it took.

        Raises:
            LoraMismatch: the LoRA was not prepared for these plans; nothing was changed.
            PlanCorrupt: the plans were altered after they were loaded; engines that still run have no LoRA.
        """
        started = time.perf_counter()
        for _ in self.refit_in_portions(lora):
            pass
        return time.perf_counter() - started

    def refit_in_portions(self, lora: PreparedLora | None) -> Iterator[None]:
        """Do what `refit` does as the iterator is advanced; nothing else may run before it is exhausted."""
        if lora is not None:
            lora.require_match(self.manifest)
        yield from self.backend.refit(lora if lora is not None and lora.strength else None)

    def generate(
        self, request: ImageRequest, on_step: OnStep | None = None, *, init_image: InitImage | None = None
    ) -> GeneratedImage:
        """Generate one image, without guidance.

        Args:
            init_image: the image that the request's `edit` describes.
            on_step: called after each forward pass with (passes done, passes in all). An exception ends the image.

        Raises:
            InvalidRequest: the request cannot be generated; nothing was computed.
            NonFiniteOutput: the model left the range of its number format.
            DeviceError: the GPU failed.
        """
        request.check(self.manifest)
        request.check_init_image(init_image, self.manifest)
        if request.is_guided(self.manifest):
            raise InvalidRequest("guidance needs two prompts at once; use EngineLoop", "guidance_scale")
        schedule = self.schedule(request)
        started = time.perf_counter()
        prompt = self.tokenize(request.prompt)
        tokenized = time.perf_counter()
        events = [self.memory.record_event()]
        prompt_embeds = self.encode_prompt([prompt])
        events.append(self.memory.record_event())
        generator, shape = Generator(request.seed), self.manifest.model.latents_shape(request.size(self.manifest))
        image = None if init_image is None else self._encode(init_image, generator.randn(shape))
        events.append(self.memory.record_event())
        latents = self.denoise(prompt_embeds, generator.randn(shape), schedule, on_step, image)
        events.append(self.memory.record_event())
        decoded = self.decode(latents)
        events.append(decoded.done)
        pixels = decoded.wait()
        encoder, image_encoder, denoiser, decoder = (start.seconds_until(end) for start, end in pairwise(events))
        seconds = StageTimes(
            tokenize=tokenized - started,
            prompt_encoder=encoder,
            vae_encoder=image_encoder if init_image else 0.0,
            passes=denoiser,
            denoiser=denoiser,
            vae_decoder=decoder,
        )
        pixels = pixels if init_image is None else paste_back(pixels, init_image)
        return GeneratedImage(pixels, request.seed, request.steps(self.manifest), prompt, seconds)

    def schedule(self, request: ImageRequest) -> Array:
        """Return [steps + 1] float32, the noise levels of the steps that are run."""
        return np.array(request.noise_levels(self.manifest), np.float32)

    def noise(self, seed: int, size: Size) -> Array:
        """Return the initial latents, [1, 16, height / 8, width / 8] float32, equal to torch's CPU generator's."""
        return randn(seed, self.manifest.model.latents_shape(size))

    def denoise(
        self,
        prompt_embeds: Tensor,
        noise: Array,
        schedule: Array,
        on_step: OnStep | None = None,
        image: EncodedImage | None = None,
    ) -> Tensor:
        """Run the Euler loop. Each step's output is copied over its input, so that all steps have the same bindings.

        Args:
            prompt_embeds: [B, L, prompt_embeds_dim] float32.
            noise: [B, 16, h, w] float32.
            schedule: [steps + 1] float32, from `schedule`.
            on_step: called when the latents of a step are on the host; on a GPU the next step is running by then.
            image: the image to begin with in place of noise alone, for a batch of 1.

        Returns:
            [B, 16, h, w] float32, valid until the next call.
        """
        latents, latents_next = (self.memory.view(name, noise.shape) for name in ("latents", "latents_next"))
        levels = np.repeat(schedule[:, None], len(noise), axis=1)  # [steps + 1, B]
        if image is None:
            self.memory.write("latents", noise)
        else:
            self.memory.copy(latents, self._noised(image, noise, levels[0]))
        steps = len(schedule) - 1
        readbacks: deque[tuple[int, Readback]] = deque()
        for step in range(steps):
            self.step(latents, latents_next, prompt_embeds, levels[step], levels[step + 1])
            if image is not None and image.mask is not None:
                self.memory.copy(latents, self._blended(image, latents_next))
            else:
                self.memory.copy(latents, latents_next)
            readbacks.append((step + 1, self.memory.read(latents)))  # the next pass does not write them
            while len(readbacks) > (self.memory.max_ahead if step + 1 < steps else 0):
                done, readback = readbacks.popleft()
                require_finite(readback.wait(), f"latents after step {done} of {steps}")
                if on_step is not None:
                    on_step(done, steps)
        return latents

    def synchronize(self) -> None:
        """Wait until nothing is running."""
        self.memory.synchronize()

    def _encode(self, init_image: InitImage, posterior_noise: Array) -> EncodedImage:
        mask = init_image.latents_mask(self.manifest.model.vae_scale)[None, None] if init_image.is_inpainting else None
        return EncodedImage(self.encode_image(init_image.pixel_array(), posterior_noise), mask)

    def _noised(self, image: EncodedImage, noise: Array, sigma: Array) -> Tensor:
        """Enqueue the first latents of an image. Its noise and its mask stay in their tensors for `_blended`."""
        first = self.add_noise(image.latents, self.memory.write("noise", noise), sigma)
        if image.mask is not None:
            self.memory.write("mask", image.mask)
        return first

    def _blended(self, image: EncodedImage, latents_next: Tensor) -> Tensor:
        """Enqueue the blend after a step, at the noise level that the step went to."""
        assert image.mask is not None
        noise, mask = self.memory.view("noise", latents_next.shape), self.memory.view("mask", image.mask.shape)
        to_blend = self.memory.view("latents_to_blend", latents_next.shape)
        sigma = self.memory.view("blend_sigma", (1,))
        self.memory.copy(to_blend, latents_next)
        self.memory.copy(sigma, self.memory.view("sigma_next", (1,)))
        return self.blend(to_blend, image.latents, noise, mask, sigma)


def warm_up(pipeline: Pipeline, sizes: Sequence[Size]) -> None:
    """Prepare kernels, contexts and CUDA graphs of each size, for single passes with prompts of every length.

    The bindings are those of `Pipeline.generate` and of `EngineLoop`, which then prepare nothing for such passes.
    Batches of two and more are prepared at first use, since only some of them gain; but if images are guided by
    default, passes of both prompts are prepared too. Each graph runs WARM_PASSES times: the denoiser for each size and
    each of n padded lengths (16 up to 512 tokens), the prompt encoder for each length, all other graphs for each size.
    Each of these bindings gets a context, all in the one arena.
    """
    model, backend = pipeline.manifest.model, pipeline.backend
    levels = sigmas(WARM_PASSES, model.schedule_shift)
    started = time.perf_counter()
    backend.pin_bindings(True)
    for size in sizes:
        for length in range(SEQUENCE_MULTIPLE, padded(model.prompt.max_tokens) + 1, SEQUENCE_MULTIPLE):
            prompt = TokenizedPrompt((model.prompt.pad_token_id,) * length, "", "")
            for _ in range(WARM_PASSES if size == sizes[0] else 1):
                prompt_embeds = pipeline.encode_prompt([prompt])
            if model.default_guidance and any(profile.covers(size, 2) for profile in pipeline.manifest.profiles):
                _run_pairs(pipeline, size, length, levels)
            latents = pipeline.denoise(prompt_embeds, pipeline.noise(0, size), levels)
        for _ in range(WARM_PASSES):
            _run_other_graphs(pipeline, latents, size)
        backend.save_kernels()  # now: if compiling takes longer than the server waits for a start, the next one goes on
        log.info("warmed up %s, %.1f s so far", size, time.perf_counter() - started)
    backend.pin_bindings(False)


def _run_pairs(pipeline: Pipeline, size: Size, length: int, levels: Array) -> None:
    """Run passes of both prompts of a guided image, which are of one length, with whatever is in memory."""
    memory, model = pipeline.memory, pipeline.manifest.model
    shape = (2, *model.latents_shape(size)[1:])
    latents, latents_next = memory.view("latents", shape), memory.view("latents_next", shape)
    prompt_embeds = memory.view("prompt_embeds", (2, length, model.prompt_embeds_dim))
    for sigma, sigma_next in pairwise(levels):
        pipeline.step(latents, latents_next, prompt_embeds, np.repeat(sigma, 2), np.repeat(sigma_next, 2))
    pipeline.synchronize()


def _run_other_graphs(pipeline: Pipeline, latents: Tensor, size: Size) -> None:
    """Run once the graphs that are neither in `Pipeline.encode_prompt` nor in a step."""
    shape, zero = latents.shape, np.zeros(1, np.float32)
    pipeline.guide(pipeline.guided_latents(shape), zero, zero)
    pipeline.decode(latents).wait()
    if pipeline.manifest.has_image_input:
        image = np.zeros((size.height, size.width, 3), np.uint8)
        image_latents = pipeline.encode_image(image, np.zeros(shape, np.float32))
        pipeline.add_noise(image_latents, pipeline.memory.view("noise", shape), zero)
