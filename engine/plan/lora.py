"""A LoRA for plans that are refittable: what to write into which weight of which graph.

`zimage-lora` prepares the file: every key has its place, factors are in FP32 with their scale, and the powers of two
that keep FP16 in range are those of the merged weights. Knows arrays and files; not who executes the graphs.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ml_dtypes  # noqa: F401  numpy knows bfloat16 from then on
import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from engine.errors import LoraMismatch, PlanCorrupt
from engine.plan.manifest import Graph, GraphName, Manifest, Precision, RefitWeight

Array = np.ndarray[Any, Any]

FORMAT = "zimage-trt lora 1"
DOWN, UP = ".down", ".up"


@dataclass(frozen=True, slots=True)
class About:
    """What a prepared LoRA is for, and what changes beside the factors.

    Attributes:
        weights_sha256, precisions: of the plans that it is for.
        exponents: weight of a graph -> power of two that it is held at from now on.
    """

    weights_sha256: str
    precisions: dict[GraphName, Precision]
    exponents: dict[str, int]


@dataclass(frozen=True, slots=True)
class PreparedLora:
    """A prepared LoRA.

    Attributes:
        factors: parameter of the checkpoint -> down [rank, in] and up [out, rank], FP32; their product is added.
        scales: weight of a graph without parts -> what stands in its place.
    """

    about: About
    factors: Mapping[str, tuple[Array, Array]]
    scales: Mapping[str, Array]

    def encode(self) -> bytes:
        """The file that `read` accepts."""
        tensors = dict(self.scales)
        for layer, (down, up) in self.factors.items():
            tensors |= {layer + DOWN: np.ascontiguousarray(down), layer + UP: np.ascontiguousarray(up)}
        about = msgspec.json.encode(self.about).decode()
        metadata = {"format": FORMAT, "about": about, "sha256": _digest(about, tensors)}
        encoded: bytes = safetensors.numpy.save(tensors, metadata)
        return encoded

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises LoraMismatch if it is not a file that `zimage-lora` wrote, or was altered since."""
        try:
            with safetensors.safe_open(file, framework="np") as opened:
                metadata = opened.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise LoraMismatch(
                        f"{file} is not prepared for plans; do it with: zimage-lora {file} --engines ... -o ..."
                    )
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a dict
        except (OSError, safetensors.SafetensorError) as error:
            raise LoraMismatch(f"cannot read {file}: {error}") from error
        about = metadata.get("about", "")
        if metadata.get("sha256") != _digest(about, tensors):
            raise LoraMismatch(f"{file} was altered after zimage-lora wrote it; prepare it again")
        layers = [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]
        return cls(
            about=msgspec.json.decode(about, type=About),
            factors={layer: (tensors[layer + DOWN], tensors[layer + UP]) for layer in layers},
            scales={key: value for key, value in tensors.items() if not key.endswith((DOWN, UP))},
        )

    def require_match(self, manifest: Manifest) -> None:
        """Raises LoraMismatch if the plans are not refittable, or of other weights or precisions."""
        require_swappable(manifest)
        if self.about.weights_sha256 != manifest.model.weights_sha256:
            raise LoraMismatch(f"the LoRA was prepared for other weights than these plans of {manifest.model.name}")
        precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
        if self.about.precisions != precisions:
            raise LoraMismatch(f"the LoRA was prepared for {self.about.precisions}, the plans have {precisions}")
        swappable = {weight.name for graph in manifest.graphs.values() for weight in graph.refittable}
        if swappable != {*self.about.exponents, *self.scales}:
            raise LoraMismatch("the LoRA was prepared for plans of another zimage-trt; prepare it again")

    def weights(self, graph: Graph, directory: Path) -> dict[str, Array]:
        """The weights of a graph that differ from the plan's own, as they are to be written."""
        merged = {}
        for weight in graph.refittable:
            if weight.name in self.scales:
                merged[weight.name] = self.scales[weight.name]
            elif self.about.exponents[weight.name] != weight.exponent or any(p in self.factors for p in weight.parts):
                merged[weight.name] = self._merge(weight, own_value(graph, weight, directory))
        return merged

    def _merge(self, weight: RefitWeight, own: Array) -> Array:
        merged = (own.T if weight.transposed else own).astype(np.float32)  # [out, in], a copy
        merged *= np.float32(math.ldexp(1.0, -weight.exponent))
        for part, rows in zip(weight.parts, np.split(merged, len(weight.parts)), strict=True):
            if part in self.factors:
                down, up = self.factors[part]
                rows += up @ down
        merged *= np.float32(math.ldexp(1.0, self.about.exponents[weight.name]))
        return np.ascontiguousarray(merged.T if weight.transposed else merged, own.dtype)


def is_prepared(file: Path) -> bool:
    """Whether a file is of the form that `zimage-lora` writes, as far as its metadata tells."""
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            return (opened.metadata() or {}).get("format") == FORMAT
    except (OSError, safetensors.SafetensorError):
        return False


def require_swappable(manifest: Manifest) -> None:
    """Raises LoraMismatch if the plans can take no LoRA at all."""
    if not manifest.refittable:
        raise LoraMismatch("the plans' weights cannot be swapped; build them with --refittable, or with --lora")
    if manifest.model.loras:
        raise LoraMismatch("the plans have a LoRA merged; build them without --lora to swap others in and out")


def own_value(graph: Graph, weight: RefitWeight, directory: Path) -> Array:
    """What the plan has of its own in place of a weight; read from disk as it is looked at."""
    assert graph.weights_file is not None
    path = directory / graph.weights_file
    try:
        return np.memmap(path, weight.dtype, "r", weight.offset, weight.shape)
    except (OSError, ValueError) as error:
        raise PlanCorrupt(f"{path} is not as it was built: {error}; build again") from error


def _digest(about: str, tensors: Mapping[str, Array]) -> str:
    found = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()
