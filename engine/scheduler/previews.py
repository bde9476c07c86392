"""Previews of a sample: the steps that get one, and the estimated latents that it shows."""

from engine.array import Array
from engine.sampling.preview import estimate
from engine.scheduler.sample import Sample


def preview_steps(count: int, steps: int) -> frozenset[int]:
    """Return up to `count` steps after which to show a preview, spread evenly, never the last step."""
    return frozenset(round(steps * (i + 1) / (count + 1)) for i in range(count)) - {0, steps}


def estimate_for_preview(sample: Sample, step: int, latents: Array) -> Array | None:
    """Return an estimate [16, h, w] of the final latents if a preview is wanted after this step.

    Args:
        step: the step that is over, counted from 1.
        latents: [16, h, w] after it. They are copied if the next step's preview needs them.
    """
    before = sample.latents
    sample.latents = latents.copy() if step + 1 in sample.previews else None
    if before is None or step not in sample.previews:
        return None
    return estimate(before.reshape(latents.shape), latents, *sample.schedule[step - 1 : step + 1])
