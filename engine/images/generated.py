"""A finished image, with the facts of its generation."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.array import Array
from engine.files import whole_file
from engine.images.encode import encode
from engine.images.metadata import ImageMetadata
from engine.plan.manifest import Manifest
from engine.request import ImageFormat, ImageRequest
from engine.sampling.tokenizer import TokenizedPrompt
from engine.size import Size
from engine.stages import StageTimes


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A finished image, and facts of its generation.

    Attributes:
        pixels: [height, width, 3] uint8, RGB.
        prompt: the tokens of the prompt, and the part that was too long.
        text: text for the image's file by keyword, from `file_metadata`; `ImageGenerator` fills it.
    """

    pixels: Array
    seed: int
    num_inference_steps: int
    prompt: TokenizedPrompt
    seconds: StageTimes = field(default_factory=StageTimes)
    text: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        height, width, _ = self.pixels.shape
        return Size(width, height)

    def save(self, path: str | os.PathLike[str], quality: int = 100) -> None:
        """Write the image and its text to a file, which appears under its name once all of it is written.

        Args:
            path: a name that ends in .png, .jpg, .jpeg or .webp; without a suffix, the file is a PNG.
            quality: 0 to 100, of JPEG and WebP.

        Raises:
            InvalidRequest: another suffix, or a quality out of range.
            OSError: the file cannot be written.
        """
        file = Path(path)
        data = encode(self.pixels, ImageFormat.of(file, quality), self.text)
        with whole_file(file) as opened:
            opened.write(data)

    def metadata(self, manifest: Manifest, request: ImageRequest) -> ImageMetadata:
        """Return the facts of this image, which these plans generated for the request."""
        return ImageMetadata(
            seed=self.seed,
            width=self.size.width,
            height=self.size.height,
            num_inference_steps=self.num_inference_steps,
            forwards=request.forwards(manifest),
            guidance_scale=request.guidance(manifest),
            plan_id=manifest.plan_id,
            precision=manifest.precision,
            flavor=manifest.target.flavor,
            model=manifest.model.name,
            revised_prompt=self.prompt.text if self.prompt.dropped else None,
            text_tokens=len(self.prompt.ids),
            seconds=self.seconds,
            lora=request.lora,
            lora_strength=None if request.lora is None else request.lora_strength,
            cfg_normalization=request.cfg_normalization,
            cfg_truncation=request.cfg_truncation,
            strength=None if request.edit is None else request.edit.strength,
            init_image=None if request.edit is None else request.edit.image,
        )
