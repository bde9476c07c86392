"""A manifest without files: what policies and requests need of plans that nobody has built."""

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

MODEL = Model(
    name="Z-Image-Turbo",
    weights_sha256="0" * 64,
    latent_channels=16,
    vae_scale=8,
    patch_size=2,
    prompt_embeds_dim=8,
    rope=Rope(256.0, (8, 12, 12), (1536, 512, 512)),
    prompt=PromptFormat("", "", 512, 0),
    schedule_shift=3.0,
    default_steps=8,
    default_guidance=0.0,
)


def bare_manifest(model: Model, sides: Range, max_batch: int, file: str = "") -> Manifest:
    """Return a manifest with one profile.

    Args:
        sides: widths and heights in pixels.
        max_batch: images that may share a pass.
        file: plan of all graphs.
    """
    return Manifest(
        schema_version=SCHEMA_VERSION,
        plan_id="0123456789ab",
        zimage_trt="0",
        precision="fp32",
        model=model,
        target=Target("onnx", "onnx opset 20"),
        profiles=(Profile("default", sides, sides, Range(1, 1, max_batch), Range(32, 64, 512)),),
        graphs={name: Graph(file, "fp32", (), ()) for name in get_args(GraphName)},
        files=(),
    )
