"""A finished image, with the facts of its generation."""

from dataclasses import dataclass, field

from engine.array import Array
from engine.images.metadata import ImageMetadata
from engine.plan.manifest import Manifest
from engine.request import ImageRequest
from engine.sampling.tokenizer import TokenizedPrompt
from engine.size import Size
from engine.stages import StageTimes


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A finished image, and facts of its generation."""

    pixels: Array  # [height, width, 3] uint8, RGB
    seed: int
    num_inference_steps: int
    prompt: TokenizedPrompt
    seconds: StageTimes = field(default_factory=StageTimes)

    @property
    def size(self) -> Size:
        height, width, _ = self.pixels.shape
        return Size(width, height)

    def metadata(self, manifest: Manifest, request: ImageRequest) -> ImageMetadata:
        """Return the facts of this image, which these plans generated for the request."""
        return ImageMetadata(
            seed=self.seed,
            width=self.size.width,
            height=self.size.height,
            num_inference_steps=self.num_inference_steps,
            forwards=request.forwards(manifest),
            guidance_scale=request.guidance_scale,
            plan_id=manifest.plan_id,
            precision=manifest.precision,
            flavor=manifest.target.flavor,
            model=manifest.model.name,
            revised_prompt=self.prompt.text if self.prompt.dropped else None,
            text_tokens=len(self.prompt.ids),
            seconds=self.seconds,
            lora=request.lora,
            lora_strength=None if request.lora is None else request.lora_strength,
        )
