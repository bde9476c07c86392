"""A manifest of a small model, for tests that need one and build nothing."""

from dataclasses import replace

from benchmarks.harness.bare_manifest import MODEL
from engine.plan.manifest import (
    SCHEMA_VERSION,
    Graph,
    Manifest,
    PreviewProjection,
    Profile,
    PromptFormat,
    Range,
    Target,
    TensorSpec,
)

PROMPT_LENGTH = Range(32, 64, 512)
USUAL = Profile("usual", Range(64, 256, 256), Range(64, 256, 256), Range(1, 1, 4), PROMPT_LENGTH)
LARGE = Profile("large", Range(64, 384, 512), Range(64, 384, 512), Range(1, 1, 1), PROMPT_LENGTH)
BANNER = Profile("banner", Range(64, 64, 128), Range(768, 1024, 1024), Range(1, 1, 2), PROMPT_LENGTH)


LATENTS = ("batch", 16, "latent_height", "latent_width")


def tensors(**shapes: tuple[int | str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())


MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    plan_id="0123456789ab",
    zimage_trt="0.1.0",
    precision="fp32",
    model=replace(
        MODEL,
        name="Z-Image-Fake",
        prompt=PromptFormat("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", 512, 0),
    ),
    target=Target("onnx", "onnx opset 20"),
    profiles=(USUAL, LARGE),
    graphs={
        "prompt_encoder": Graph(
            "prompt_encoder.onnx",
            "fp32",
            (TensorSpec("input_ids", "int64", ("batch", "prompt_length")), TensorSpec("lengths", "int64", ("batch",))),
            tensors(prompt_embeds=("batch", "prompt_length", 8)),
        ),
        "denoiser": Graph(
            "denoiser.onnx",
            "fp16",
            tensors(
                latents=LATENTS,
                sigma=("batch",),
                sigma_next=("batch",),
                prompt_embeds=("batch", "prompt_length", 8),
                rope_cos=("sequence", 16),
                rope_sin=("sequence", 16),
            ),
            tensors(latents_next=LATENTS),
            parity=9e-5,
            activation_bytes=(123, 456),
        ),
        "guidance": Graph(
            "guidance.onnx",
            "fp32",
            tensors(
                latents_positive=LATENTS,
                latents_negative=LATENTS,
                latents_before=LATENTS,
                guidance_scale=("batch",),
                cfg_normalization=("batch",),
            ),
            tensors(latents_guided=LATENTS),
        ),
        "vae_decoder": Graph(
            "vae_decoder.onnx",
            "bf16",
            tensors(latents=LATENTS),
            (TensorSpec("image", "uint8", ("batch", "height", "width", 3)), *tensors(image_mean=("batch",))),
        ),
        "vae_encoder": Graph(
            "vae_encoder.onnx",
            "bf16",
            (TensorSpec("init_image", "uint8", ("batch", "height", "width", 3)), *tensors(posterior_noise=LATENTS)),
            tensors(image_latents=LATENTS),
        ),
        "blend": Graph(
            "blend.onnx",
            "fp32",
            tensors(
                latents_to_blend=LATENTS,
                image_latents=LATENTS,
                noise=LATENTS,
                mask=("batch", 1, "latent_height", "latent_width"),
                blend_sigma=("batch",),
            ),
            tensors(latents_blended=LATENTS),
        ),
    },
    files=(),
    preview=PreviewProjection(tuple((0.1 * row, -17.25, 1e-7) for row in range(16)), (127.5, 0.1 + 0.2, 130.0), 0.915),
)
