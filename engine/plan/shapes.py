"""Bounds of the graphs' dynamic dimensions in a profile, for building plans and for sizing memory."""

from collections.abc import Mapping, Sequence

from engine.plan.manifest import Graph, GraphName, Model, Profile, Range, padded


def dimensions(graph: GraphName, profile: Profile, model: Model) -> dict[str, Range]:
    """Return the bounds by the dimension's name in the manifest.

    Images are encoded and decoded one at a time, so the VAE's batch is 1: at 1024x1024 the activations of its decoder
    take 1.6 GB per image.
    """
    h, w = (_divided(r, model.vae_scale) for r in (profile.height, profile.width))
    tokens = [
        padded(getattr(h, which) * getattr(w, which) // model.patch_size**2) + getattr(profile.prompt_length, which)
        for which in ("min", "opt", "max")
    ]
    return {
        "batch": Range(1, 1, 1) if graph in ("vae_decoder", "vae_encoder") else profile.batch,
        "prompt_length": profile.prompt_length,
        "sequence": Range(*tokens),
        "latent_height": h,
        "latent_width": w,
        "height": profile.height,
        "width": profile.width,
    }


def covers(graph: Graph, bounds: Mapping[str, Range], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Return True if the shapes of a graph's inputs are within the bounds of its dynamic dimensions."""
    return all(
        size == dimension if isinstance(dimension, int) else size in bounds[dimension]
        for spec in graph.inputs
        for size, dimension in zip(shapes[spec.name], spec.shape, strict=True)
    )


def longest_sequence(profiles: Sequence[Profile], model: Model) -> int:
    """Return the largest number of tokens that the denoiser attends to."""
    return max(dimensions("denoiser", profile, model)["sequence"].max for profile in profiles)


def _divided(r: Range, divisor: int) -> Range:
    return Range(r.min // divisor, r.opt // divisor, r.max // divisor)
