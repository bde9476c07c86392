"""Requests for images, and checks that the plans can generate them."""

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

from engine.errors import InvalidRequest
from engine.init_image import InitImage
from engine.noise_levels import guided_steps, noise_levels
from engine.plan.manifest import Manifest
from engine.size import Size

ImageKind = Literal["png", "jpeg", "webp"]

KINDS: dict[str, ImageKind] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # by suffix

MAX_SEED = 2**64 - 1  # as in torch, whose CPU generator takes the low 32 bits
MAX_RANDOM_SEED = 2**32 - 1  # seeds with the same low 32 bits give the same image
RANDOM = -1  # the seed that stands for a random one
MAX_STEPS = 100  # Z-Image-Turbo is distilled for 8, Z-Image takes 28 to 50; more than this is a mistake
MAX_LORA = 64  # characters of a name
MAX_LORA_STRENGTH = 4.0  # of either sign; 0.5 to 1 is usual
IMG2IMG_STRENGTH, INPAINT_STRENGTH = 0.6, 1.0  # diffusers' defaults
MAX_GUIDANCE = 30.0  # 3 to 7 is usual; far above, latents leave the range that the VAE was trained on
MAX_NORMALIZATION = 100.0  # 1 is usual; far above, the norm is never bounded


class LoraChoice(NamedTuple):
    """A LoRA at a strength, which its text leaves out if it is 1. Images that share the weights have the same."""

    name: str
    strength: float

    def __str__(self) -> str:
        return self.name if self.strength == 1 else f"{self.name} at strength {self.strength:g}"


@dataclass(frozen=True, slots=True)
class Edit:
    """Image-to-image or inpainting in a request; the pixels of the init image travel beside it.

    Attributes:
        strength: diffusers' strength, 0 to 1: the share of the steps that are run. At 1 the image counts for nothing
            where it is drawn anew.
        image: `InitImage.digest()`.
        is_inpainting: True if a mask says where the image is drawn anew.
    """

    strength: float
    image: str
    is_inpainting: bool = False

    def skipped_steps(self, steps: int) -> int:
        """Return how many of all steps the init image replaces, with the arithmetic of diffusers' `get_timesteps`."""
        return int(max(steps - min(steps * self.strength, steps), 0))


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A request for one image. What is None is the plans' default.

    Attributes:
        width, height: pixels.
        seed: 0 to MAX_SEED.
        guidance_scale: diffusers' scale: positive + scale * (positive - negative); 0 for none.
        lora: name of a LoRA that the loop offers.
        lora_strength: 0 is no LoRA.
        cfg_normalization: largest norm of the guided velocity, relative to the positive one's; 0 for no bound.
        cfg_truncation: progress (1 - noise level, 0 to 1) beyond which steps are not guided; 1 for never.
        edit: what becomes of the init image; None to begin with noise alone.
    """

    prompt: str
    width: int | None = None
    height: int | None = None
    seed: int = 0
    num_inference_steps: int | None = None
    negative_prompt: str = ""
    guidance_scale: float | None = None
    lora: str | None = None
    lora_strength: float = 1.0
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0
    edit: Edit | None = None

    @property
    def lora_choice(self) -> LoraChoice | None:
        """The LoRA to apply; None for the plans' own weights."""
        return None if self.lora is None or not self.lora_strength else LoraChoice(self.lora, self.lora_strength)

    def numbered(self, index: int) -> "ImageRequest":
        """Return the request of the image at an index, whose seed is `seed + index`; 0 follows the largest seed."""
        return replace(self, seed=(self.seed + index) % (MAX_SEED + 1)) if index else self

    def starting_from(self, init_image: InitImage, strength: float | None = None) -> "ImageRequest":
        """Return the request of an image of this size that begins with an init image.

        Args:
            strength: None for diffusers' default, which is 1 with a mask and 0.6 without one.
        """
        if strength is None:
            strength = INPAINT_STRENGTH if init_image.is_inpainting else IMG2IMG_STRENGTH
        width, height = init_image.size
        return replace(
            self, width=width, height=height, edit=Edit(strength, init_image.digest(), init_image.is_inpainting)
        )

    def size(self, manifest: Manifest) -> Size:
        """Return the requested size, or the size that the plans are tuned for."""
        width, height = manifest.default_size
        return Size(width if self.width is None else self.width, height if self.height is None else self.height)

    def steps(self, manifest: Manifest) -> int:
        """Return the number of steps of the whole schedule."""
        return manifest.model.default_steps if self.num_inference_steps is None else self.num_inference_steps

    def steps_to_run(self, manifest: Manifest) -> int:
        """Return the number of denoising steps; an init image replaces the first ones."""
        steps = self.steps(manifest)
        return steps if self.edit is None else steps - self.edit.skipped_steps(steps)

    def guidance(self, manifest: Manifest) -> float:
        """Return diffusers' guidance scale; 0 for none."""
        return manifest.model.default_guidance if self.guidance_scale is None else self.guidance_scale

    def is_guided(self, manifest: Manifest) -> bool:
        """Return True if the negative prompt matters."""
        return self.guidance(manifest) > 0

    def noise_levels(self, manifest: Manifest) -> tuple[float, ...]:
        """Return [steps + 1] noise levels of the steps that are run; each step goes from one to the next."""
        levels = noise_levels(self.steps(manifest), manifest.model.schedule_shift)
        return levels[-1 - self.steps_to_run(manifest) :]

    def guided_steps(self, manifest: Manifest) -> int:
        """Return the number of steps, the first ones, that take two forward passes, one for each prompt."""
        return guided_steps(self.noise_levels(manifest), self.cfg_truncation) if self.is_guided(manifest) else 0

    def forwards(self, manifest: Manifest, done: int = 0) -> int:
        """Return the number of forward passes of the denoiser, without those of the steps that are done."""
        return self.steps_to_run(manifest) - done + max(self.guided_steps(manifest) - done, 0)

    def without_effect(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the names of the fields that have no effect without guidance, if there is none."""
        given = {
            "negative_prompt": bool(self.negative_prompt),
            "cfg_normalization": self.cfg_normalization != 0,
            "cfg_truncation": self.cfg_truncation != 1,
        }
        return () if self.is_guided(manifest) else tuple(name for name, is_given in given.items() if is_given)

    def check(self, manifest: Manifest, loras: Collection[str] = ()) -> None:
        """Check that these plans can generate the image.

        Args:
            loras: names of the LoRAs on offer.

        Raises:
            InvalidRequest: they cannot; `param` names the field.
        """
        manifest.profile_for(self.size(manifest))
        if self.lora is not None and self.lora not in loras:
            wanted = f"one of {', '.join(loras)}" if loras else "absent, since no LoRAs are offered"
            raise InvalidRequest(f"lora must be {wanted}; got {self.lora[:MAX_LORA]!r}", "lora")
        if not self.prompt.strip() and self.edit is None:
            raise InvalidRequest("prompt must not be empty", "prompt")
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(f"{name} is not valid Unicode text: {error.reason}", name) from error
        for name, value, low, high in (
            ("seed", self.seed, 0, MAX_SEED),
            ("num_inference_steps", self.steps(manifest), 1, MAX_STEPS),
            ("guidance_scale", self.guidance(manifest), 0, MAX_GUIDANCE),
            ("cfg_normalization", self.cfg_normalization, 0, MAX_NORMALIZATION),
            ("cfg_truncation", self.cfg_truncation, 0, 1),
            ("lora_strength", self.lora_strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH),
        ):
            if not low <= value <= high:  # also true for NaN
                raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}", name)
        if self.edit is not None:
            self._check_edit(self.edit, manifest)

    def check_init_image(self, init_image: InitImage | None, manifest: Manifest) -> None:
        """Check that the init image of the request came with it.

        Raises:
            InvalidRequest: it is missing, or is not the one that `edit` describes.
        """
        if init_image is None and self.edit is None:
            return
        if init_image is None or self.edit is None:
            got, needs = ("no image", "one") if init_image is None else ("an image", "none")
            raise InvalidRequest(f"{got} came with a request that needs {needs} (its edit)", "init_image")
        expected = self.size(manifest), self.edit.is_inpainting
        if (init_image.size, init_image.is_inpainting) != expected:
            raise InvalidRequest(
                f"the init image must be the one that the request describes: {_described(*expected)}; "
                f"got {_described(init_image.size, init_image.is_inpainting)}",
                "init_image",
            )

    def _check_edit(self, edit: Edit, manifest: Manifest) -> None:
        steps = self.steps(manifest)
        if not manifest.has_image_input:
            raise InvalidRequest(
                "an image cannot be an input here: the plans have no VAE encoder, or it was not loaded "
                "(--no-image-input)",
                "init_image",
            )
        if not 0 <= edit.strength <= 1:  # also true for NaN
            raise InvalidRequest(f"strength must be between 0 and 1, got {edit.strength}", "strength")
        if edit.skipped_steps(steps) == steps:
            raise InvalidRequest(
                f"strength must be above 0 (0.01 runs one of {steps} steps), got {edit.strength:g}", "strength"
            )


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Format of an image file.

    Attributes:
        quality: 0 to 100, OpenAI's `output_compression`. JPEG and WebP are lossy even at 100; PNG allows only 100.

    Raises:
        InvalidRequest: the quality is out of range, or is not 100 for PNG.
    """

    kind: ImageKind = "png"
    quality: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 100:
            raise InvalidRequest(
                f"output_compression must be between 0 and 100, got {self.quality}", "output_compression"
            )
        if self.kind == "png" and self.quality != 100:
            raise InvalidRequest(
                f"png is lossless: output_compression must be 100, got {self.quality}; use jpeg or webp for lower ones",
                "output_compression",
            )

    @classmethod
    def of(cls, file: Path, quality: int = 100) -> Self:
        """Return the format that a file's name asks for: that of its suffix, or PNG without one.

        Raises:
            InvalidRequest: the suffix is of no format, or the quality does not fit.
        """
        suffix = file.suffix.lower()
        if suffix and suffix not in KINDS:
            raise InvalidRequest(f"{file} must end in {', '.join(KINDS)}; got {file.suffix}", "output")
        return cls(KINDS.get(suffix, "png"), quality)

    @property
    def media_type(self) -> str:
        return f"image/{self.kind}"

    @property
    def suffix(self) -> str:
        """Suffix of the file name, with its dot."""
        return {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[self.kind]


PNG = ImageFormat()


def _described(size: Size, is_inpainting: bool) -> str:
    return f"{size} {'with' if is_inpainting else 'without'} a mask"


def random_seed() -> int:
    """Return a seed for a request without one."""
    return random.randint(0, MAX_RANDOM_SEED)
