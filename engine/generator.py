"""`ImageGenerator`: images from prompts in one call, the Python API.

Knows prompts, callbacks and files of LoRAs; `EngineLoop` decides which images share a forward pass.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, overload

from engine.array import Array
from engine.errors import DeviceError, InvalidRequest, LoraMismatch, ZImageError
from engine.images.encode import enlarge
from engine.images.generated import GeneratedImage
from engine.images.metadata import file_metadata
from engine.images.preparation import MASK_BLUR, Preparation, ResizeMode
from engine.images.source import ImageSource, read_init_image
from engine.init_image import InitImage
from engine.options import SLOTS, RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import resolve
from engine.plan.manifest import Manifest
from engine.request import RANDOM, ImageRequest, random_seed
from engine.sampling.preview import project
from engine.scheduler.events import Denoised, DenoisedImage, Failed, Stepped
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_registry import LoraRegistry
from engine.scheduler.table_files import TableFile


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of an image is over.

    Attributes:
        index: index of the image among those of the call; 0 for a single one.
        done, steps: steps that are over, and steps in all.
        preview: [height, width, 3] uint8, RGB, of the image's size; after the steps for which `previews` asked.
    """

    index: int
    done: int
    steps: int
    preview: Array | None = None


OnProgress = Callable[[Progress], None]


class ImageGenerator:
    """Generates images from a plan directory. One thread at a time may use it.

        with ImageGenerator("out/engines") as generator:
            generator.generate("a red circle", size=(256, 192), seed=7).save("out.png")

    Args:
        engines: a plan directory, or a folder that `build-engines --output` wrote; its newest plans are used.
        options: options of the runtime, such as threads, profiles and sizes to warm up.
        loras: files that `zimage-lora` wrote, by the name that `generate` is to know them by; needs refittable plans.

    Raises:
        PlanError: there are no plans, or they are damaged or do not fit this machine.
        BackendUnavailable, OutOfDeviceMemory: the plans cannot run here.
        LoraMismatch: a LoRA cannot be read, or was prepared for other plans.
    """

    def __init__(
        self,
        engines: str | os.PathLike[str],
        options: RuntimeOptions | None = None,
        *,
        loras: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        options = options or RuntimeOptions(slots=SLOTS)
        directory = resolve(Path(engines))
        files = dict(options.loras) | {name: Path(file) for name, file in (loras or {}).items()}
        self._pipeline = Pipeline.load(directory, options)
        try:
            registry = LoraRegistry(self._pipeline, files, options.lora_versions)
            if unusable := registry.check():
                raise LoraMismatch("; ".join(unusable))
            table = TableFile.of(directory, self._pipeline).read() if options.batching == "auto" else None
            self._loop = EngineLoop(self._pipeline, table, registry)
        except BaseException:
            self._pipeline.close()
            raise
        self._runs = 0
        self._is_running = False

    @property
    def manifest(self) -> Manifest:
        """The manifest of the plans, with the profiles that are loaded."""
        return self._pipeline.manifest

    def close(self) -> None:
        """Free everything. The generator cannot be used any more."""
        self._pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is also a sequence of str; the first signature wins
        self,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        seed: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        cfg_normalization: float = 0.0,
        cfg_truncation: float = 1.0,
        lora: str | None = None,
        lora_strength: float = 1.0,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        strength: float | None = None,
        padding_mask_crop: int | None = None,
        mask_blur: int = MASK_BLUR,
        resize_mode: ResizeMode = "crop",
        previews: int = 0,
        on_progress: OnProgress | None = None,
    ) -> GeneratedImage: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        cfg_normalization: float = 0.0,
        cfg_truncation: float = 1.0,
        lora: str | None = None,
        lora_strength: float = 1.0,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        strength: float | None = None,
        padding_mask_crop: int | None = None,
        mask_blur: int = MASK_BLUR,
        resize_mode: ResizeMode = "crop",
        previews: int = 0,
        on_progress: OnProgress | None = None,
    ) -> list[GeneratedImage]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        cfg_normalization: float = 0.0,
        cfg_truncation: float = 1.0,
        lora: str | None = None,
        lora_strength: float = 1.0,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        strength: float | None = None,
        padding_mask_crop: int | None = None,
        mask_blur: int = MASK_BLUR,
        resize_mode: ResizeMode = "crop",
        previews: int = 0,
        on_progress: OnProgress | None = None,
    ) -> GeneratedImage | list[GeneratedImage]:
        """Generate an image of a prompt, or an image of each prompt of a list.

        Args:
            size: (width, height) in pixels; None for the size of `image` or, without one, that the plans are tuned for.
            seed: 0 to 2**64 - 1; None or -1 for a random one. Each further prompt of a list has the next seed. A list
                of seeds has one per prompt.
            steps: denoising steps, 1 to 100; None for the model's number.
            guidance_scale: diffusers' scale, 0 to 30, or None for the model's; above 0, steps take two forward passes.
            negative_prompt: text that guidance moves away from; without guidance it has no effect.
            cfg_normalization: largest norm of the guided velocity, relative to the positive one's; 0 for no bound.
            cfg_truncation: progress (1 - noise level, 0 to 1) beyond which steps are not guided.
            lora: name of one of the generator's LoRAs.
            lora_strength: factor of what the LoRA changes, -4 to 4.
            image: an image to start from: a file's name, the bytes of a file, a Pillow image, or an array
                [height, width, 3] of uint8. All prompts share it.
            mask: where `image` is drawn anew: white, in any of these forms and any size; None for all of it.
            strength: share of the steps that are run, above 0 and up to 1; None for 0.6, or for 1 with a mask. At 1,
                `image` counts for nothing where it is drawn anew.
            padding_mask_crop: None to generate the whole image. Otherwise only the part around the mask is generated,
                in the given size, with this many pixels of the image around it, and pasted into `image`.
            mask_blur: pixels, radius of the soft edge of that part.
            resize_mode: for an image of another aspect ratio than `size`, "crop" keeps its centre and "stretch"
                distorts it.
            previews: previews per image, spread evenly over its steps; plans of a VAE without an encoder have none.
            on_progress: called after each step. An exception that it raises ends the call; the generator stays usable.

        Returns:
            An image for a single prompt, otherwise a list in the order of the prompts.

        Raises:
            InvalidRequest: an image cannot be generated; `param` names the field, and nothing was generated.
            OSError: a file cannot be read.
            NonFiniteOutput: an image left the range of its number format.
            DeviceError: the GPU failed.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        width, height = (None, None) if size is None else size
        init_image = None
        if image is not None:
            limits = self.manifest.size_limits
            preparation = Preparation(limits, width, height, resize_mode, padding_mask_crop, mask_blur)
            init_image = read_init_image(image, mask, preparation)
        for name, value in (("mask", mask), ("strength", strength), ("padding_mask_crop", padding_mask_crop)):
            if image is None and value is not None:
                raise InvalidRequest(f"{name} needs an image to start from, got none", "image")
        requests = [
            ImageRequest(
                text,
                width,
                height,
                own,
                steps,
                negative_prompt,
                guidance_scale,
                lora,
                lora_strength,
                float(cfg_normalization),
                cfg_truncation,
            )
            for text, own in zip(prompts, _seeds(seed, len(prompts)), strict=True)
        ]
        if init_image is not None:
            requests = [request.starting_from(init_image, strength) for request in requests]
        images: dict[int, GeneratedImage] = {}
        for index, outcome in self.run(
            requests,
            init_images=() if init_image is None else (init_image,),
            previews=previews,
            on_progress=on_progress,
        ):
            if isinstance(outcome, ZImageError):
                raise outcome
            images[index] = outcome
        return images[0] if isinstance(prompt, str) else [images[index] for index in range(len(prompts))]

    def run(
        self,
        requests: Iterable[ImageRequest],
        *,
        init_images: Iterable[InitImage] = (),
        previews: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, GeneratedImage | ZImageError]]:
        """Generate images of any requests, and yield each with the index of its request as soon as it is finished.

        An image that fails is yielded as its error, and the others go on. Closing the iterator cancels the rest.

        Args:
            init_images: the images that requests start from (`ImageRequest.starting_from`), each once.

        Raises:
            InvalidRequest: a request cannot be generated; nothing was generated.
            DeviceError, PlanCorrupt: no further image can be generated.
            RuntimeError: another call is still running.
        """
        if self._is_running:
            raise RuntimeError("the generator is in use: finish or close the iterator of the earlier call first")
        wanted = list(requests)
        by_digest = {init_image.digest(): init_image for init_image in init_images}
        starts = [None if request.edit is None else by_digest.get(request.edit.image) for request in wanted]
        for request, start in zip(wanted, starts, strict=True):
            request.check_init_image(start, self.manifest)
        prompts = [self._loop.tokenize(request) for request in wanted]
        self._runs += 1
        keys = {f"{self._runs}/{index}": index for index in range(len(wanted))}  # keys of cancelled images never return
        self._is_running = True
        try:
            for key, index in keys.items():
                self._loop.submit(key, wanted[index], previews, prompts=prompts[index], init_image=starts[index])
            yield from self._outcomes(keys, on_progress)
        finally:
            for key in keys:
                self._loop.cancel(key)
            self._is_running = False

    def _outcomes(
        self, keys: Mapping[str, int], on_progress: OnProgress | None
    ) -> Iterator[tuple[int, GeneratedImage | ZImageError]]:
        """Run the loop until every image has an outcome."""
        left = len(keys)
        decoding: list[tuple[int, DenoisedImage]] = []
        while left:
            events = self._loop.step()
            for index, pending in decoding:  # their pixels were on their way while the next passes were enqueued
                left -= 1
                yield index, self._finish(pending)
            decoding = []
            for event in events:
                match event:
                    case Stepped() if on_progress is not None:
                        preview = None if event.estimate is None else self._preview(event.estimate)
                        on_progress(Progress(keys[event.key], event.done, event.steps, preview))
                    case Failed():
                        left -= 1
                        yield keys[event.key], event.error
                    case Denoised():
                        decoding.append((keys[event.key], event.pending))

    def _finish(self, pending: DenoisedImage) -> GeneratedImage | ZImageError:
        request = pending.sample.request
        try:
            image = pending.finish()
        except DeviceError:
            raise
        except ZImageError as error:
            return error
        return replace(image, text=file_metadata(request, image.metadata(self.manifest, request)))

    def _preview(self, estimate: Array) -> Array | None:
        """Convert an estimate of the final latents [16, h, w] to pixels; None if these plans have no previews."""
        manifest = self.manifest
        if manifest.preview is None:
            return None
        return enlarge(project(manifest.preview, estimate), manifest.model.vae_scale)


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return a seed per image."""
    if seed is None or isinstance(seed, int):
        first = ImageRequest("", seed=random_seed() if seed in (None, RANDOM) else seed)
        return [first.numbered(index).seed for index in range(count)]
    if len(seed) != count:
        raise InvalidRequest(f"seed must be a number, or one for each of {count} prompts, got {len(seed)}", "seed")
    return list(seed)
