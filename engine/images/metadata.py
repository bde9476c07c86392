"""Facts of a generated image, and the text of them for its file. Knows no file formats."""

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Self

from engine.plan.manifest import Flavor, Manifest, Precision
from engine.request import ImageRequest
from engine.size import Size
from engine.stages import StageTimes

if TYPE_CHECKING:
    from engine.pipeline import GeneratedImage  # its imports take a third of a second, which a server need not wait for

SPECIAL = frozenset(",:\n")


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """How an image was generated and what it cost; with its prompts, all that it takes to generate it again.

    Attributes:
        width, height: pixels.
        forwards: passes of the denoiser.
        guidance_scale: diffusers' scale; the CFG scale of other tools is one more.
        lora: name of the LoRA that was requested.
        revised_prompt: the part of a prompt that was used, if it was too long.
        text_tokens: of the prompt, without padding.
        seconds: of each stage.
    """

    seed: int
    width: int
    height: int
    num_inference_steps: int
    forwards: int
    guidance_scale: float
    plan_id: str
    precision: Precision
    flavor: Flavor
    model: str
    revised_prompt: str | None
    text_tokens: int
    seconds: StageTimes
    lora: str | None = None

    @classmethod
    def of(cls, manifest: Manifest, request: ImageRequest, image: "GeneratedImage") -> Self:
        """Return the facts of an image that these plans generated for a request."""
        return cls(
            seed=image.seed,
            width=image.size.width,
            height=image.size.height,
            num_inference_steps=image.num_inference_steps,
            forwards=request.forwards(manifest),
            guidance_scale=request.guidance_scale,
            plan_id=manifest.plan_id,
            precision=manifest.precision,
            flavor=manifest.target.flavor,
            model=manifest.model.name,
            revised_prompt=image.prompt.text if image.prompt.dropped else None,
            text_tokens=len(image.prompt.ids),
            seconds=image.seconds,
            lora=request.lora,
        )

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)

    def with_encoding(self, seconds: float) -> Self:
        """Return a copy that also knows how long the file's encoding took."""
        return replace(self, seconds=replace(self.seconds, encode=seconds))


def file_metadata(request: ImageRequest, metadata: ImageMetadata) -> dict[str, str]:
    """Return the text for an image file, by keyword.

    Returns:
        "parameters": the text that AUTOMATIC1111's web UI writes and other tools read. A prompt may imitate its
            settings, so it is for people; "zimage-trt": JSON of the prompts and of every field but the seconds, in
            ASCII, exact whatever is in the prompt.
    """
    facts = asdict(metadata)
    del facts["seconds"]
    prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    return {"parameters": _infotext(request, metadata), "zimage-trt": json.dumps(prompts | facts)}


def _infotext(request: ImageRequest, metadata: ImageMetadata) -> str:
    settings = {
        "Steps": metadata.num_inference_steps,
        "Sampler": "Euler",
        "CFG scale": f"{1 + metadata.guidance_scale:g}",
        "Seed": metadata.seed,
        "Size": str(metadata.size),
        "Model": _quoted(metadata.model),
    }
    if metadata.lora is not None:
        settings["LoRA"] = _quoted(metadata.lora)
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if SPECIAL & set(value) else value
