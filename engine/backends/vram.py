"""The GPU memory that plans need, computed before any of it is allocated."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from engine.backends.memory import layout, tensor_bytes
from engine.errors import OutOfDeviceMemory
from engine.plan.manifest import GraphName, Manifest

# An estimate for kernels, CUDA graphs and internal memory of contexts, whose size is not known beforehand.
RESERVE = 768 << 20

OFFLOADED: tuple[GraphName, ...] = ("prompt_encoder", "denoiser")  # with --offload, one of them at a time is resident


@dataclass(frozen=True, slots=True)
class VramPlan:
    """Bytes of GPU memory by purpose.

    Attributes:
        weights: bytes of each plan file. It holds the weights, as often as TensorRT laid them out, and little else.
        activations: bytes of each graph's largest context; None if the builder did not record them.
        buffers: bytes of the tensors between the graphs.
        image_input: bytes of all this that images as inputs need; 0 if they are not loaded.
        offload: True if only one of the prompt encoder and the denoiser is resident at a time.
        repeated: graphs whose plans hold weights twice.
    """

    weights: Mapping[GraphName, int]
    activations: Mapping[GraphName, int | None]
    buffers: int
    image_input: int = 0
    offload: bool = False
    repeated: tuple[GraphName, ...] = ()

    @classmethod
    def of(cls, directory: Path, manifest: Manifest, profiles: Iterable[int], *, offload: bool, slots: int = 0) -> Self:
        """Return the VRAM plan for the profiles of these indices."""
        chosen = list(profiles)
        without = manifest.without_image_input()
        plans = {name: (directory / graph.file).stat().st_size for name, graph in manifest.graphs.items()}
        found = cls(
            weights=plans,
            activations={
                name: max((graph.activation_bytes[i] for i in chosen), default=None) if graph.activation_bytes else None
                for name, graph in manifest.graphs.items()
            },
            buffers=layout(tensor_bytes(manifest, [manifest.profiles[i] for i in chosen], slots))[1],
            offload=offload,
            repeated=tuple(name for name, graph in manifest.graphs.items() if graph.repeats_weights(plans[name])),
        )
        if without.graphs.keys() == manifest.graphs.keys():
            return found
        less = cls.of(directory, without, chosen, offload=offload, slots=slots)
        return replace(found, image_input=found.needed - less.needed)

    @property
    def resident(self) -> int:
        """Bytes of weights on the device at once, at most."""
        offloaded = [self.weights[name] for name in OFFLOADED]
        return sum(self.weights.values()) - (sum(offloaded) - max(offloaded) if self.offload else 0)

    @property
    def arena(self) -> int:
        """Bytes of the arena, which all graphs share."""
        return max(size or 0 for size in self.activations.values())

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return self.resident + self.arena + self.buffers + RESERVE

    def table(self) -> str:
        """Return a table in GB, for people."""
        rows = [("", "weights", "activations")]
        rows += [
            (name + (", weights twice" if name in self.repeated else ""), _gb(size), _gb(self.activations[name]))
            for name, size in self.weights.items()
        ]
        rows += [
            ("on the GPU at once" + (", offloaded" if self.offload else ""), _gb(self.resident), _gb(self.arena)),
            ("tensors between them", "", _gb(self.buffers)),
            ("kernels, CUDA graphs (estimate)", "", _gb(RESERVE)),
            ("needed" if None not in self.activations.values() else "needed, at least", "", _gb(self.needed)),
            *([("of it for images as inputs", "", _gb(self.image_input))] if self.image_input else []),
        ]
        return "\n".join(f"{name:<32}{weights:>10}{rest:>13}" for name, weights, rest in rows)

    def require_fit(self, free: int, names: Sequence[str]) -> None:
        """Check that the plans fit.

        Args:
            free: free bytes on the device.
            names: names of the profiles to be loaded.

        Raises:
            OutOfDeviceMemory: they do not; the message lists ways to make them fit.
        """
        if self.needed <= free:
            return
        ways = []
        if not self.offload and (less := replace(self, offload=True)).needed < self.needed:
            ways.append(
                f"load prompt encoder and denoiser one at a time (--offload), which needs {_gb(less.needed)} "
                "and adds seconds to each new prompt"
            )
        if self.image_input:
            ways.append(
                f"serve without images as inputs (--no-image-input), which needs {_gb(self.needed - self.image_input)}"
            )
        if len(names) > 1:
            ways.append(f"serve fewer profiles with --profile (now: {' and '.join(names)})")
        if self.repeated:
            ways.append(
                f"build with one --profile, or with the same largest batch in all, so that the plan of the "
                f"{' and the '.join(self.repeated)} holds its weights once"
            )
        ways += ["build for smaller sizes or batches (build-engines --profile)", "stop other programs that use the GPU"]
        raise OutOfDeviceMemory(
            f"the plans need {_gb(self.needed)} of GPU memory, {_gb(free)} are free.\n{self.table()}\n"
            f"To make it fit: {'; '.join(ways)}"
        )


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"
