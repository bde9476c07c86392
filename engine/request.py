"""What can be asked for, and whether the plans can generate it; what they cover is in `manifest`."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from engine.errors import InvalidRequest
from engine.plan.manifest import Manifest
from engine.size import Size

ImageKind = Literal["png", "jpeg", "webp"]

MAX_SEED = 2**32 - 1  # MT19937's seed, as torch uses it
MAX_STEPS = 100  # the model is distilled for 8; beyond this a request is a mistake, not an image
MAX_LORA = 64  # characters of a name
MAX_GUIDANCE = 30.0  # usual are 3 to 7; far above, latents leave every range that the VAE has seen


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What to generate. Sizes in pixels; None stands for what the plans are tuned for."""

    prompt: str
    width: int | None = None
    height: int | None = None
    seed: int = 0  # 0..MAX_SEED
    num_inference_steps: int | None = None  # forward passes; None for the model's own number, 8
    negative_prompt: str = ""
    guidance_scale: float = 0.0  # as diffusers means it: positive + scale * (positive - negative); 0 generates without
    lora: str | None = None  # name of one that is offered

    @property
    def is_guided(self) -> bool:
        """Each step then takes two forward passes, one for each prompt."""
        return self.guidance_scale > 0

    def size(self, manifest: Manifest) -> Size:
        """The size to generate: as requested, or what the plans are tuned for."""
        width, height = manifest.default_size
        return Size(width if self.width is None else self.width, height if self.height is None else self.height)

    def steps(self, manifest: Manifest) -> int:
        """Steps from noise to image."""
        return manifest.model.default_steps if self.num_inference_steps is None else self.num_inference_steps

    def forwards(self, manifest: Manifest) -> int:
        """Forward passes of the denoiser."""
        return self.steps(manifest) * (2 if self.is_guided else 1)

    def check(self, manifest: Manifest, loras: Collection[str] = ()) -> None:
        """Raises InvalidRequest for what these plans with these LoRAs do not generate, naming the field."""
        manifest.profile_for(self.size(manifest))
        if self.lora is not None and self.lora not in loras:
            wanted = f"one of {', '.join(loras)}" if loras else "absent, as none is offered here"
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
            ("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE),
        ):
            if not low <= value <= high:  # NaN is not
                raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}", name)


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How an image is written.

    Attributes:
        quality: 0..100, OpenAI's `output_compression`: of JPEG and WebP, lossy even at 100. PNG takes only 100.

    Raises:
        InvalidRequest: quality is out of range, or one that PNG does not have.
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
                f"png is lossless: output_compression must be 100, got {self.quality}; jpeg and webp take others",
                "output_compression",
            )

    @property
    def media_type(self) -> str:
        return f"image/{self.kind}"

    @property
    def suffix(self) -> str:
        """Of a file's name, with its dot."""
        return {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[self.kind]


PNG = ImageFormat()


def random_seed() -> int:
    """A seed for a request that names none."""
    return random.randint(0, MAX_SEED)
