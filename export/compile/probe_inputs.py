"""Inputs of probes: small shapes that all profiles together serve, and values for them.

Knows shapes and the weights that inputs are multiplied by first; not outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from engine.errors import UnsupportedShape
from engine.plan.manifest import GraphName, Manifest, Profile, padded
from engine.sampling.rope import tables
from engine.size import Size
from export.checkpoint.files import Checkpoint
from export.checkpoint.models import Model, vae_decoder, vae_encoder
from export.checkpoint.weights import Weight
from export.compile.parity import Array, Arrays, blend_inputs, encoder_inputs, guidance_inputs
from export.graphs.denoiser import unpatchify

TOKENS = 20  # of most prompts: with padding
FULL_STEP = 8.0  # sigma - sigma_next: the velocity, not the latents, makes the output
SMALLEST = "smallest"
WORST = "worst rows"


@dataclass(frozen=True, slots=True)
class ProbeShape:
    """The shape of a probe; `tokens` is the length of the prompt without padding."""

    name: str
    size: Size
    batch: int
    tokens: int


def probe_shapes(plans: Manifest) -> list[ProbeShape]:
    """Return the shapes of probes: the smallest, an odd number of image tokens, a batch, a long prompt, worst rows.

    All lie in the profile with the smallest images, or in the next larger one; each further profile has a probe that it
    alone serves.
    """
    first, *rest = sorted(plans.profiles, key=lambda profile: profile.area)
    multiple = plans.model.size_multiple
    length = first.prompt_length
    tokens = min(max(TOKENS, length.min - SHORTER), length.max)
    small = Size(first.width.min, first.height.min)
    smallest = ProbeShape(SMALLEST, small, first.batch.min, tokens)
    odd = Size(small.width + multiple, small.height + multiple)
    found = [
        smallest,
        replace(smallest, name="odd size", size=odd, tokens=min(tokens + 2 * SHORTER + 1, length.max)),
        replace(smallest, name="batch of 2", batch=2),
        replace(smallest, name="long prompt", tokens=length.max),
        replace(smallest, name=WORST),
    ]
    found = [shape for shape in found if _served_by(plans, shape.size, shape.batch) is not None]
    for profile in (first, *rest):
        if all(_served_by(plans, shape.size, shape.batch) != profile for shape in found):
            found += _only_in(plans, profile, tokens)
    return found


SHORTER = 12  # tokens by which a prompt is shorter than its padded length


def _only_in(plans: Manifest, profile: Profile, tokens: int) -> list[ProbeShape]:
    """Return the smallest shape that this profile serves; none if tighter profiles serve all that it covers."""
    multiple = plans.model.size_multiple
    widths, heights = (
        {getattr(profile, side).min, *(getattr(other, side).max + multiple for other in plans.profiles)}
        for side in ("width", "height")
    )
    batches = {profile.batch.min, *(other.batch.max + 1 for other in plans.profiles)}
    shapes = [
        (Size(width, height), batch)
        for width, height, batch in product(widths, heights, batches)
        if _served_by(plans, Size(width, height), batch) == profile
    ]
    if not shapes:
        return []
    size, batch = min(shapes, key=lambda shape: shape[0].width * shape[0].height * shape[1])
    return [ProbeShape(f"profile {profile.name}", size, batch, tokens)]


def _served_by(plans: Manifest, size: Size, batch: int) -> Profile | None:
    try:
        return plans.profile_for(size, batch)
    except UnsupportedShape:
        return None


class ProbeInputs:
    """Makes the inputs of each graph's probes.

    Args:
        plans: manifest with the model and the profiles.
    """

    def __init__(self, checkpoint: Checkpoint, plans: Manifest) -> None:
        self._checkpoint, self._model = checkpoint, plans.model
        self.shapes = probe_shapes(plans)

    def make(self, graph: GraphName, embeds: Mapping[tuple[int, int], Array]) -> dict[str, Arrays]:
        """Return the inputs of a graph's probes by name; shapes that are equal for the graph are made once.

        Args:
            embeds: outputs of the prompt encoder's probes by batch and padded length, inputs of the denoiser's.
        """
        found: dict[str, Arrays] = {}
        known: list[tuple[tuple[int, ...], ...]] = []
        for index, shape in enumerate(self.shapes):
            if shape.name == WORST and graph in ("prompt_encoder", "guidance", "blend"):
                continue  # token ids choose rows of the embedding and leave no freedom; the others have no weights
            inputs = self._inputs(graph, shape, embeds, np.random.default_rng(index))
            key = tuple(array.shape for array in inputs.values())
            if shape.name == WORST or key not in known:
                known.append(key)
                found[shape.name] = inputs
        return found

    def _inputs(
        self, graph: GraphName, shape: ProbeShape, embeds: Mapping[tuple[int, int], Array], rng: np.random.Generator
    ) -> Arrays:
        model, length = self._model, padded(shape.tokens)
        if graph == "prompt_encoder":
            vocabulary = self._checkpoint.text_encoder.config["vocab_size"]
            shorter = rng.integers(length - 31, shape.tokens + 1, shape.batch - 1)
            return {
                "input_ids": rng.integers(0, vocabulary, (shape.batch, length), np.int64),
                "lengths": np.array([shape.tokens, *shorter], np.int64),
            }
        batch = 1 if graph in ("vae_decoder", "vae_encoder") else shape.batch
        latents = rng.standard_normal((batch, *model.latents_shape(shape.size)[1:]), np.float32)
        if graph == "guidance":
            bound = 0 if shape.name == SMALLEST else 1  # the other shapes let the norm be bounded
            return guidance_inputs(latents, np.full(batch, bound, np.float32), rng)
        if graph == "vae_decoder":
            return {"latents": self._worst_pattern(latents) if shape.name == WORST else latents}
        if graph == "vae_encoder":
            found = encoder_inputs(latents, rng, shape.size.height, shape.size.width)
            return found | {"init_image": self._worst_image(shape.size)} if shape.name == WORST else found
        if graph == "blend":
            return blend_inputs(latents, rng)
        prompt_embeds = embeds[batch, length]
        if shape.name == WORST:
            latents, prompt_embeds = self._worst_latents(latents), self._worst_prompt(prompt_embeds)
        sigma = rng.uniform(0.3, 1, batch).astype(np.float32)
        _, _, h, w = latents.shape
        cos, sin = tables(model.rope, h // model.patch_size, w // model.patch_size, length)
        return {
            "latents": latents,
            "sigma": sigma,
            "sigma_next": sigma - np.float32(FULL_STEP),
            "prompt_embeds": prompt_embeds,
            "rope_cos": cos,
            "rope_sin": sin,
        }

    def _worst_latents(self, latents: Array) -> Array:
        """Put every second token along the embedder's longest rows."""
        _, channels, height, width = latents.shape
        count = height * width // 4
        longest = _longest(self._transformer("all_x_embedder.2-1.weight"), count)
        tokens = torch.from_numpy(latents).new_empty(1, count, longest.shape[1])
        tokens[:] = longest * longest.shape[1] ** 0.5
        along = unpatchify(tokens, channels, height, width).numpy()
        mask = np.indices((height // 2, width // 2)).sum(0) % 2 == 0
        return np.where(mask.repeat(2, 0).repeat(2, 1), along, latents).astype(np.float32)

    def _worst_prompt(self, prompt_embeds: Array) -> Array:
        """Put every second token along the longest rows of the first layer's products, with its norm's weight."""
        block = "layers.0."
        norm = self._transformer(f"{block}attention_norm1.weight")
        weights = [self._transformer(f"{block}attention.{name}.weight") for name in ("to_q", "to_k", "to_v")]
        _, length, _ = prompt_embeds.shape
        typical = float(np.median(np.linalg.norm(prompt_embeds, axis=-1)))
        along = _longest(torch.cat([_longest(w * norm, length, unit=False) for w in weights]), length)
        found = prompt_embeds.copy()
        found[:, ::2] = typical * along.numpy()[None, : len(found[0, ::2])]
        return found

    def _worst_pattern(self, latents: Array) -> Array:
        """Repeat the longest filter of the first convolution over the whole image."""
        _, _, height, width = latents.shape
        tiled = _tiled(_longest_filter(vae_decoder(self._checkpoint.vae)), height, width)
        pattern: Array = (tiled / tiled.std()).astype(np.float32)[None]
        return pattern

    def _worst_image(self, size: Size) -> Array:
        """Repeat the longest filter of the first convolution over the whole image, at full contrast."""
        encoder = vae_encoder(self._checkpoint.vae)
        assert encoder is not None, "plans of a VAE without an encoder have no such graph"
        tiled = _tiled(_longest_filter(encoder), size.height, size.width)
        levels = 127.5 + 127.5 * tiled / np.abs(tiled).max()
        image: Array = levels.round().astype(np.uint8).transpose(1, 2, 0)[None]
        return image

    def _transformer(self, name: str) -> torch.Tensor:
        weight: Weight = self._checkpoint.transformer.weights[name]
        return weight.load().float()


def _longest_filter(vae: Model) -> Array:
    """Return the longest filter of the first convolution, [C, 3, 3]."""
    weight = vae.weights["conv_in.weight"].load().float()
    longest: Array = weight[weight.flatten(1).norm(dim=1).argmax()].numpy()
    return longest


def _tiled(pattern: Array, height: int, width: int) -> Array:
    """Repeat [C, 3, 3] to [C, height, width]."""
    tiled: Array = np.tile(pattern, (1, height // 3 + 1, width // 3 + 1))[:, :height, :width]
    return tiled


def _longest(rows: torch.Tensor, count: int, *, unit: bool = True) -> torch.Tensor:
    """Return the `count` longest rows, repeated if there are fewer, by default at length 1."""
    lengths = rows.norm(dim=1)
    order = lengths.argsort(descending=True)
    chosen = order[torch.arange(count) % len(order)]
    return rows[chosen] / lengths[chosen, None] if unit else rows[chosen]
