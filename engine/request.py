"""Requests for images, and checks that the plans can generate them."""

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

from engine.errors import InvalidRequest
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
MAX_GUIDANCE = 30.0  # 3 to 7 is usual; far above, latents leave the range that the VAE was trained on
MAX_NORMALIZATION = 100.0  # 1 is usual; far above, the norm is never bounded


class LoraChoice(NamedTuple):
    """A LoRA at a strength, which its text leaves out if it is 1. Images that share the weights have the same."""

    name: str
    strength: float

    def __str__(self) -> str:
        return self.name if self.strength == 1 else f"{self.name} at strength {self.strength:g}"


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

    @property
    def lora_choice(self) -> LoraChoice | None:
        """The LoRA to apply; None for the plans' own weights."""
        return None if self.lora is None or not self.lora_strength else LoraChoice(self.lora, self.lora_strength)

    def numbered(self, index: int) -> "ImageRequest":
        """Return the request of the image at an index, whose seed is `seed + index`; 0 follows the largest seed."""
        return replace(self, seed=(self.seed + index) % (MAX_SEED + 1)) if index else self

    def size(self, manifest: Manifest) -> Size:
        """Return the requested size, or the size that the plans are tuned for."""
        width, height = manifest.default_size
        return Size(width if self.width is None else self.width, height if self.height is None else self.height)

    def steps(self, manifest: Manifest) -> int:
        """Return the number of denoising steps."""
        return manifest.model.default_steps if self.num_inference_steps is None else self.num_inference_steps

    def guidance(self, manifest: Manifest) -> float:
        """Return diffusers' guidance scale; 0 for none."""
        return manifest.model.default_guidance if self.guidance_scale is None else self.guidance_scale

    def is_guided(self, manifest: Manifest) -> bool:
        """Return True if the negative prompt matters."""
        return self.guidance(manifest) > 0

    def noise_levels(self, manifest: Manifest) -> tuple[float, ...]:
        """Return [steps + 1] noise levels, of which each step goes from one to the next."""
        return noise_levels(self.steps(manifest), manifest.model.schedule_shift)

    def guided_steps(self, manifest: Manifest) -> int:
        """Return the number of steps, the first ones, that take two forward passes, one for each prompt."""
        return guided_steps(self.noise_levels(manifest), self.cfg_truncation) if self.is_guided(manifest) else 0

    def forwards(self, manifest: Manifest, done: int = 0) -> int:
        """Return the number of forward passes of the denoiser, without those of the steps that are done."""
        return self.steps(manifest) - done + max(self.guided_steps(manifest) - done, 0)

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
        if not self.prompt.strip():
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


def random_seed() -> int:
    """Return a seed for a request without one."""
    return random.randint(0, MAX_RANDOM_SEED)
