"""What plans take of a GPU's memory, known before any of it is taken."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from engine.backends.memory import layout, tensor_bytes
from engine.errors import OutOfDeviceMemory
from engine.plan.manifest import GraphName, Manifest

# For kernels, CUDA graphs and what contexts keep for themselves; nothing tells their size beforehand. An estimate.
RESERVE = 768 << 20

TAKE_TURNS: tuple[GraphName, ...] = ("prompt_encoder", "denoiser")  # with --offload, one of them at a time


@dataclass(frozen=True, slots=True)
class VramPlan:
    """Bytes of GPU memory by what they are for.

    Attributes:
        weights: of each graph; a plan file is little else.
        activations: of each graph's largest context; None if the builder did not say, so that more is needed.
        buffers: of the tensors between the graphs.
        offload: the prompt encoder and the denoiser take turns.
    """

    weights: Mapping[GraphName, int]
    activations: Mapping[GraphName, int | None]
    buffers: int
    offload: bool = False

    @classmethod
    def of(cls, directory: Path, manifest: Manifest, profiles: Iterable[int], *, offload: bool, slots: int = 0) -> Self:
        """The plan for the profiles of these indices."""
        chosen = list(profiles)
        return cls(
            weights={name: (directory / graph.file).stat().st_size for name, graph in manifest.graphs.items()},
            activations={
                name: max((graph.activation_bytes[i] for i in chosen), default=None) if graph.activation_bytes else None
                for name, graph in manifest.graphs.items()
            },
            buffers=layout(tensor_bytes(manifest, [manifest.profiles[i] for i in chosen], slots))[1],
            offload=offload,
        )

    @property
    def resident(self) -> int:
        """Weights that are on the device at once, at most."""
        turns = [self.weights[name] for name in TAKE_TURNS]
        return sum(self.weights.values()) - (sum(turns) - max(turns) if self.offload else 0)

    @property
    def arena(self) -> int:
        """The graphs run one after the other and share it."""
        return max(size or 0 for size in self.activations.values())

    @property
    def needed(self) -> int:
        return self.resident + self.arena + self.buffers + RESERVE

    def table(self) -> str:
        """For people, in GB."""
        rows = [("", "weights", "activations")]
        rows += [(name, _gb(self.weights[name]), _gb(self.activations[name])) for name in self.weights]
        rows += [
            ("on the GPU at once" + (", by turns" if self.offload else ""), _gb(self.resident), _gb(self.arena)),
            ("tensors between them", "", _gb(self.buffers)),
            ("kernels, CUDA graphs (estimate)", "", _gb(RESERVE)),
            ("needed" if None not in self.activations.values() else "needed, at least", "", _gb(self.needed)),
        ]
        return "\n".join(f"{name:<32}{weights:>10}{rest:>13}" for name, weights, rest in rows)

    def require_fit(self, free: int, names: Sequence[str]) -> None:
        """Raises OutOfDeviceMemory, with what would make it fit, if `free` bytes are too few.

        Args:
            names: of the profiles to be loaded.
        """
        if self.needed <= free:
            return
        ways = []
        if not self.offload and (less := replace(self, offload=True)).needed < self.needed:
            ways.append(
                f"let the prompt encoder and the denoiser take turns (--offload), which needs {_gb(less.needed)} "
                "and costs seconds for each new prompt"
            )
        if len(names) > 1:
            ways.append(f"serve fewer profiles (--profile, of {' and '.join(names)})")
        ways += ["build for smaller sizes or batches (build-engines --profile)", "stop what else uses the GPU"]
        raise OutOfDeviceMemory(
            f"the plans need {_gb(self.needed)} of GPU memory, {_gb(free)} are free.\n{self.table()}\n"
            f"To make it fit: {'; '.join(ways)}"
        )


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"
