"""A LoRA prepared for refittable plans: the new values of weights, graph by graph.

`zimage-lora` prepares the file: it resolves every key, stores factors in FP32 with their scale applied, and chooses the
powers of two that keep the merged weights in FP16's range. Knows arrays and files; not the execution of graphs.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from engine.array import Array
from engine.errors import LoraMismatch, PlanCorrupt
from engine.plan.manifest import Graph, GraphName, Manifest, Precision, RefitWeight
from engine.plan.merge import Merged, Merger, Product
from engine.plan.shapes import longest_sequence

FORMATS = "zimage-trt lora "  # followed by a version
FORMAT = f"{FORMATS}2"
DOWN, UP = ".down", ".up"
Exponent = Annotated[int, msgspec.Meta(ge=-126, le=127)]  # of FP32
AHEAD = 1  # weights that other threads merge while the caller uses one


@dataclass(frozen=True, slots=True)
class About:
    """The plans that a LoRA was prepared for, and the scaling of their weights under it.

    Attributes:
        weights_sha256, precisions: those of the plans.
        exponents: weight of a graph -> power of two that scales it while the LoRA is applied.
        keys: largest number of tokens that the denoiser attends to in the plans.
    """

    weights_sha256: str
    precisions: dict[GraphName, Precision]
    exponents: dict[str, Exponent]
    keys: int = 0


@dataclass(frozen=True, slots=True)
class PreparedLora:
    """A prepared LoRA.

    Attributes:
        factors: parameter of the checkpoint -> down [rank, in] and up [out, rank], FP32; up @ down is added to it.
        scales: weight of a graph that has no parts -> its new value.
    """

    about: About
    factors: Mapping[str, tuple[Array, Array]]
    scales: Mapping[str, Array]

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        tensors = dict(self.scales)
        for layer, (down, up) in self.factors.items():
            tensors |= {layer + DOWN: np.ascontiguousarray(down), layer + UP: np.ascontiguousarray(up)}
        about = msgspec.json.encode(self.about).decode()
        metadata = {"format": FORMAT, "about": about, "sha256": _digest(about, tensors)}
        encoded: bytes = safetensors.numpy.save(tensors, metadata)
        return encoded

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file.

        Raises:
            LoraMismatch: `zimage-lora` did not write the file, or it was altered since.
        """
        try:
            with safetensors.safe_open(file, framework="np") as opened:
                metadata = opened.metadata() or {}
                _require_format(file, metadata.get("format", ""))
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a dict
        except (OSError, safetensors.SafetensorError) as error:
            raise LoraMismatch(f"cannot read {file}: {error}") from error
        about = metadata.get("about", "")
        if metadata.get("sha256") != _digest(about, tensors):
            raise LoraMismatch(f"{file} was altered after zimage-lora wrote it; prepare it again")
        try:
            return cls(
                about=msgspec.json.decode(about, type=About),
                factors={key.rpartition(".")[0]: _pair(key, tensors) for key in tensors if key.endswith((DOWN, UP))},
                scales={key: value for key, value in tensors.items() if not key.endswith((DOWN, UP))},
            )
        except (msgspec.DecodeError, RecursionError, KeyError) as error:
            raise LoraMismatch(f"{file} is not as zimage-lora writes it: {error}; prepare it again") from error

    def require_match(self, manifest: Manifest) -> None:
        """Check that the LoRA was prepared for these plans.

        Raises:
            LoraMismatch: the plans are not refittable, or have other weights, precisions or shapes.
        """
        require_refittable(manifest)
        if self.about.weights_sha256 != manifest.model.weights_sha256:
            raise LoraMismatch(f"the LoRA was prepared for other weights than these plans have ({manifest.model.name})")
        precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
        if self.about.precisions != precisions:
            raise LoraMismatch(f"the LoRA was prepared for {self.about.precisions}, the plans have {precisions}")
        refittable = {weight.name for graph in manifest.graphs.values() for weight in graph.refittable}
        if refittable != {*self.about.exponents, *self.scales}:
            raise LoraMismatch("the LoRA was prepared for plans of another version of zimage-trt; prepare it again")
        keys = longest_sequence(manifest.profiles, manifest.model)
        if manifest.accumulation == "fp16" and self.about.keys < keys:
            raise LoraMismatch(
                f"the LoRA was prepared for FP16 sums over {self.about.keys} tokens, these plans sum over {keys}; "
                "prepare it again"
            )

        weights = [weight for graph in manifest.graphs.values() for weight in graph.refittable]
        for weight in weights:
            self._require_shapes(weight)
        if unknown := sorted(self.factors.keys() - {part for weight in weights for part in weight.parts}):
            raise LoraMismatch(f"the LoRA changes {unknown[0]}, which these plans do not have; prepare it again")

    def _require_shapes(self, weight: RefitWeight) -> None:
        """Check the new value of a weight, or the factors of its parts."""
        scale = self.scales.get(weight.name)
        if scale is not None and (scale.shape, scale.dtype.name) != (weight.shape, weight.dtype):
            raise _wrong(weight.name, [scale], f"{weight.dtype} {list(weight.shape)}")
        for part in (part for part in weight.parts if part in self.factors):
            down, up = self.factors[part]
            joined, *columns = reversed(weight.shape) if weight.transposed else weight.shape
            rows, rank = joined // len(weight.parts), down.shape[:1]
            found = down.shape, up.shape, down.dtype.name, up.dtype.name
            if found != ((*rank, *columns), (rows, *rank), "float32", "float32") or not columns:
                raise _wrong(part, [down, up], f"float32 [rank, {', '.join(map(str, columns))}] and [{rows}, rank]")

    def changes(self, graph: Graph) -> set[str]:
        """Return the names of a graph's weights that differ from the plan's."""
        return {
            weight.name
            for weight in graph.refittable
            if weight.name in self.scales
            or self.about.exponents[weight.name] != weight.exponent
            or any(part in self.factors for part in weight.parts)
        }

    def weights(self, graph: Graph, directory: Path) -> Iterator[tuple[str, Array]]:
        """Return name and value of each weight in `changes`, ready for `Plan.refit`, one after the other.

        Other threads merge one weight ahead. It takes memory for two weights, and some megabytes for each core.
        """
        changes = self.changes(graph)
        with Merger() as merger:
            started: deque[tuple[str, Merged]] = deque()
            for weight in graph.refittable:
                if weight.name in self.scales:
                    yield weight.name, self.scales[weight.name]
                elif weight.name in changes:
                    started.append((weight.name, self._start(merger, weight, base_weight(graph, weight, directory))))
                if len(started) > AHEAD:
                    name, merged = started.popleft()
                    yield name, merged.wait()
            for name, merged in started:
                yield name, merged.wait()

    def _start(self, merger: Merger, weight: RefitWeight, base: Array) -> Merged:
        products = []
        extent = base.shape[1 if weight.transposed else 0] // len(weight.parts)
        for number, part in enumerate(weight.parts):
            if part not in self.factors:
                continue
            down, up = self.factors[part]
            at = number * extent
            # (up @ down).T as down.T @ up.T: BLAS takes transposed factors as they are
            products.append(Product(down.T, up.T, 0, at) if weight.transposed else Product(up, down, at, 0))
        return merger.start(base, products, weight.exponent, self.about.exponents[weight.name])


def is_prepared(file: Path) -> bool:
    """Return True if a file's metadata says that `zimage-lora` wrote it, also another version of it."""
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            return metadata.get("format", "").startswith(FORMATS)
    except (OSError, safetensors.SafetensorError):
        return False


def require_refittable(manifest: Manifest) -> None:
    """Check that LoRAs can be applied to the plans at run time.

    Raises:
        LoraMismatch: no LoRA can be.
    """
    if not manifest.refittable:
        raise LoraMismatch("the plans' weights cannot be changed; build them with --refittable, or merge with --lora")
    if manifest.model.loras:
        raise LoraMismatch("the plans have a LoRA merged; build them without --lora to apply others at run time")


def base_weight(graph: Graph, weight: RefitWeight, directory: Path) -> Array:
    """Return a weight's value in the plan, mapped from disk."""
    assert graph.weights_file is not None
    path = directory / graph.weights_file
    try:
        return np.memmap(path, weight.dtype, "r", weight.offset, weight.shape)
    except (OSError, ValueError) as error:
        raise PlanCorrupt(f"{path} is not as it was built: {error}; build again") from error


def _require_format(file: Path, found: str) -> None:
    if found == FORMAT:
        return
    if found.startswith(FORMATS):
        raise LoraMismatch(
            f"{file} was prepared by another version of zimage-lora, in the format {found!r}, this zimage-trt reads "
            f"{FORMAT!r}; prepare the LoRA that it was made from again"
        )
    raise LoraMismatch(f"{file} is not prepared for plans; prepare it with: zimage-lora {file} --engines ... -o ...")


def _pair(key: str, tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return both factors of a layer, given the key of one of them."""
    layer = key.rpartition(".")[0]
    return tensors[layer + DOWN], tensors[layer + UP]


def _wrong(name: str, tensors: Sequence[Array], expected: str) -> LoraMismatch:
    found = " and ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
    return LoraMismatch(f"the LoRA has {found} for {name}, these plans need {expected}; prepare it again")


def _digest(about: str, tensors: Mapping[str, Array]) -> str:
    found = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()
