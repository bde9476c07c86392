"""What an image was made of, as text for its file. Knows no file formats."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from engine.plan.manifest import Manifest, Precision
from engine.request import ImageRequest

SPECIAL = frozenset(",:\n")


@dataclass(frozen=True, slots=True)
class ImageParameters:
    """All that it takes to generate an image again. Sizes in pixels."""

    prompt: str
    seed: int
    num_inference_steps: int
    width: int
    height: int
    model: str
    plan_id: str
    precision: Precision
    negative_prompt: str = ""
    guidance_scale: float = 0.0  # diffusers' scale; the CFG scale that others mean is one more
    lora: str | None = None

    @classmethod
    def of(cls, manifest: Manifest, request: ImageRequest) -> Self:
        """Of what these plans generated."""
        height, width = request.size(manifest)
        return cls(
            prompt=request.prompt,
            seed=request.seed,
            num_inference_steps=request.steps(manifest),
            width=width,
            height=height,
            model=manifest.model.name,
            plan_id=manifest.plan_id,
            precision=manifest.precision,
            negative_prompt=request.negative_prompt,
            guidance_scale=request.guidance_scale,
            lora=request.lora,
        )


def parameters(image: ImageParameters) -> dict[str, str]:
    """Metadata by keyword.

    Returns:
        "parameters": the text that AUTOMATIC1111's web UI writes and other tools read. A prompt may imitate its
            settings, so it is for people; "zimage-trt": JSON of every field, in ASCII, exact whatever is in the prompt.
    """
    return {"parameters": _infotext(image), "zimage-trt": json.dumps(asdict(image))}


def _infotext(image: ImageParameters) -> str:
    settings = {
        "Steps": image.num_inference_steps,
        "Sampler": "Euler",
        "CFG scale": f"{1 + image.guidance_scale:g}",
        "Seed": image.seed,
        "Size": f"{image.width}x{image.height}",
        "Model": _quoted(image.model),
    }
    if image.lora is not None:
        settings["LoRA"] = _quoted(image.lora)
    lines = [image.prompt]
    if image.negative_prompt:
        lines.append(f"Negative prompt: {image.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if SPECIAL & set(value) else value
