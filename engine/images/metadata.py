"""Facts of a generated image, and the text of them for its file. Knows no file formats."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Self

import msgspec

from engine.plan.manifest import Flavor, Precision
from engine.request import ImageRequest
from engine.size import Size
from engine.stages import StageTimes

SPECIAL = frozenset(",:\n")

Positive = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """Facts of an image's generation. With the prompts, they are enough to generate the image again.

    Attributes:
        width, height: pixels.
        forwards: forward passes of the denoiser.
        guidance_scale: diffusers' scale; the CFG scale of other tools is larger by one.
        revised_prompt: the part of the prompt that was used, if the prompt was too long.
        text_tokens: tokens of the prompt, without padding.
        seconds: stage times.
        lora: name of the requested LoRA.
        lora_strength: its strength; None without a LoRA.
        cfg_normalization, cfg_truncation: diffusers'; without effect where `guidance_scale` is 0.
        strength: of the init image; None without one.
        init_image: digest of the init image, its mask and its paste (`InitImage.digest`).
    """

    seed: int
    width: Positive
    height: Positive
    num_inference_steps: int
    forwards: Positive
    guidance_scale: float
    plan_id: str
    precision: Precision
    flavor: Flavor
    model: str
    revised_prompt: str | None
    text_tokens: int
    seconds: StageTimes
    lora: str | None = None
    lora_strength: float | None = None
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0
    strength: float | None = None
    init_image: str | None = None

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)

    def with_encoding(self, seconds: float) -> Self:
        """Return a copy with the time that the file's encoding took."""
        return replace(self, seconds=replace(self.seconds, encode=seconds))


def file_metadata(request: ImageRequest, metadata: ImageMetadata) -> dict[str, str]:
    """Return the text for an image file, by keyword.

    Returns:
        "parameters": the text that AUTOMATIC1111's web UI writes and other tools read. A prompt may imitate its
            settings, so programs should not parse it. "zimage-trt": ASCII JSON of the prompts and of every field
            but the seconds, exact for any prompt.
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
    if metadata.strength is not None:
        settings["Denoising strength"] = f"{metadata.strength:g}"
    if metadata.guidance_scale:
        if metadata.cfg_normalization:
            settings["CFG normalization"] = f"{metadata.cfg_normalization:g}"
        if metadata.cfg_truncation < 1:
            settings["CFG truncation"] = f"{metadata.cfg_truncation:g}"
    if metadata.lora is not None:
        settings["LoRA"] = _quoted(metadata.lora)
        if metadata.lora_strength not in (None, 1):
            settings["LoRA strength"] = f"{metadata.lora_strength:g}"
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if SPECIAL & set(value) else value
