"""Plans of simulated devices: what a manifest must say for the policies. Knows no files."""

from dataclasses import replace

from benchmarks.harness.bare_manifest import MODEL, bare_manifest
from engine.plan.manifest import Manifest, Range

SIDES = Range(256, 1024, 2048)


def simulated_manifest(steps: int = 8, guidance: float = 0.0, max_batch: int = 8, sides: Range = SIDES) -> Manifest:
    """Return a manifest with one profile.

    Args:
        steps, guidance: the model's defaults.
        max_batch: images that may share a pass.
        sides: widths and heights in pixels.
    """
    return bare_manifest(replace(MODEL, default_steps=steps, default_guidance=guidance), sides, max_batch)
