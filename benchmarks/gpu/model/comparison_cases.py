"""Inputs of the denoiser with DiffSynth's outputs in FP32, in a file, and the error of another output against them."""

from dataclasses import dataclass

import numpy as np

from benchmarks.gpu.findings import Settings
from engine.array import Array

OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one image, by name, and the latents after the step."""

    inputs: dict[str, Array]
    output: Array

    def velocity_error(self, got: Array) -> float:
        """Return the relative L2 error of the velocity; Inf if a value is not finite."""
        latents = self.inputs["latents"].astype(np.float64)
        one, other = (result.astype(np.float64) - latents for result in (got, self.output))
        error = float(np.linalg.norm(one - other) / np.linalg.norm(other))
        return error if np.isfinite(error) else float("inf")

    @property
    def side(self) -> int:
        """Height and width in pixels."""
        return 8 * int(self.output.shape[-1])


def save(settings: Settings, cases: dict[str, Case]) -> None:
    """Write the cases, for other parts."""
    arrays = {f"{name}/{key}": array for name, case in cases.items() for key, array in case.inputs.items()}
    arrays |= {f"{name}/{OUTPUT}": case.output for name, case in cases.items()}
    np.savez(settings.folder / "reference.npz", **arrays)  # type: ignore[arg-type]  # not its keyword allow_pickle


def load(settings: Settings) -> dict[str, Case]:
    """Read the cases that the part `reference` has written."""
    found: dict[str, dict[str, Array]] = {}
    with np.load(settings.folder / "reference.npz") as stored:
        for key in stored.files:
            name, _, tensor = key.rpartition("/")
            found.setdefault(name, {})[tensor] = stored[key]
    return {name: Case(tensors, tensors.pop(OUTPUT)) for name, tensors in found.items()}
