"""Plans of simulated devices: what a manifest must say for the policies. Knows no files."""

from dataclasses import replace
from typing import get_args

from engine.plan.manifest import (
    SCHEMA_VERSION,
    Graph,
    GraphName,
    Manifest,
    Model,
    Profile,
    PromptFormat,
    Range,
    Rope,
    Target,
)

SIDES = Range(256, 1024, 2048)
MODEL = Model(
    name="Z-Image-Turbo",
    weights_sha256="0" * 64,
    latent_channels=16,
    vae_scale=8,
    patch_size=2,
    prompt_embeds_dim=2560,
    rope=Rope(256.0, (32, 48, 48), (1536, 512, 512)),
    prompt=PromptFormat("", "", 512, 0),
    schedule_shift=3.0,
    default_steps=8,
    default_guidance=0.0,
)


def simulated_manifest(
    model: str = MODEL.name, steps: int = 8, guidance: float = 0.0, max_batch: int = 8, sides: Range = SIDES
) -> Manifest:
    """Return a manifest with one profile.

    Args:
        steps, guidance: the model's defaults.
        max_batch: images that may share a pass.
        sides: widths and heights in pixels.
    """
    return Manifest(
        schema_version=SCHEMA_VERSION,
        plan_id="simulated",
        zimage_trt="0",
        precision="fp16",
        model=replace(MODEL, name=model, default_steps=steps, default_guidance=guidance),
        target=Target("tensorrt", "none"),
        profiles=(Profile("default", sides, sides, Range(1, 1, max_batch), Range(32, 64, 512)),),
        graphs={name: Graph("", "fp16", (), ()) for name in get_args(GraphName)},
        files=(),
    )
