"""A LoRA prepared for refittable plans: the new values of weights, graph by graph.

`zimage-lora` prepares the file: it resolves every key, stores changes at a strength of 1, and chooses the powers of two
that keep the merged weights in FP16's range up to a strength. Knows arrays and files; not the execution of graphs.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from engine.array import Array
from engine.errors import LoraMismatch, PlanCorrupt
from engine.plan.delta import VALUES, Delta, StoredArray, read_delta
from engine.plan.manifest import Graph, GraphName, Manifest, Precision, RefitWeight
from engine.plan.merge import Merged, Merger
from engine.plan.shapes import longest_sequence

FORMATS = "zimage-trt lora "  # followed by a version
FORMAT = f"{FORMATS}3"
Exponent = Annotated[int, msgspec.Meta(ge=-126, le=127)]  # of FP32
AHEAD = 1  # weights that other threads merge while the caller uses one


@dataclass(frozen=True, slots=True)
class Scaling:
    """The scaling of the plans' weights under a LoRA, up to a strength.

    Attributes:
        strength: largest strength of its sign that FP16 can hold the weights at.
        exponents: weight of a graph -> power of two that scales it.
        scales: weight of a graph that has no parts -> its new value.
    """

    strength: float
    exponents: dict[str, Exponent]
    scales: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class About:
    """The plans that a LoRA was prepared for, and the scaling of their weights under it.

    Attributes:
        weights_sha256, precisions: those of the plans.
        scalings: by strength.
        keys: largest number of tokens that the denoiser attends to in the plans.
    """

    weights_sha256: str
    precisions: dict[GraphName, Precision]
    scalings: tuple[Scaling, ...]
    keys: int = 0

    @property
    def strengths(self) -> tuple[float, float]:
        """Smallest and largest strength at which the LoRA can be applied."""
        offered = [0.0, *(scaling.strength for scaling in self.scalings)]
        return min(offered), max(offered)

    def require_match(self, manifest: Manifest) -> None:
        """Check that the LoRA was prepared for these plans.

        Raises:
            LoraMismatch: the plans are not refittable, or have other weights or precisions.
        """
        require_refittable(manifest)
        if self.weights_sha256 != manifest.model.weights_sha256:
            raise LoraMismatch(f"the LoRA was prepared for other weights than these plans have ({manifest.model.name})")
        precisions = {name: graph.precision for name, graph in manifest.graphs.items() if graph.refittable}
        if not precisions.items() <= self.precisions.items():
            raise LoraMismatch(f"the LoRA was prepared for {self.precisions}, the plans have {precisions}")
        scaled = {weight.name for weight in manifest.refit_weights if weight.parts}
        single = {weight.name for weight in manifest.refit_weights if not weight.parts}
        if not all((scaled, single) == (set(one.exponents), set(one.scales)) for one in self.scalings):
            raise LoraMismatch("the LoRA was prepared for plans of another version of zimage-trt; prepare it again")
        keys = longest_sequence(manifest.profiles, manifest.model)
        if manifest.accumulation == "fp16" and self.keys < keys:
            raise LoraMismatch(
                f"the LoRA was prepared for FP16 sums over {self.keys} tokens, these plans sum over {keys}; "
                "prepare it again"
            )


@dataclass(frozen=True, slots=True)
class PreparedLora:
    """A prepared LoRA.

    Attributes:
        deltas: parameter of the checkpoint -> what is added to it at a strength of 1.
        strength: the strength to apply it at, see `at`.
    """

    about: About
    deltas: Mapping[str, tuple[Delta, ...]]
    strength: float = 1.0

    def at(self, strength: float) -> Self:
        """Return the LoRA at a strength.

        Raises:
            LoraMismatch: it was not prepared for this strength.
        """
        low, high = self.about.strengths
        if not low <= strength <= high:
            raise LoraMismatch(f"the LoRA can be applied at strengths from {low:g} to {high:g}, not at {strength:g}")
        return replace(self, strength=strength)

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        tensors = {
            f"{parameter}.{number}.{name}": np.ascontiguousarray(array)
            for parameter, deltas in self.deltas.items()
            for number, delta in enumerate(deltas)
            for name, array in delta.fields().items()
        }
        about = msgspec.json.encode(self.about).decode()
        metadata = {"format": FORMAT, "about": about, "sha256": _digest(about, sorted(tensors), tensors.__getitem__)}
        encoded: bytes = safetensors.numpy.save(tensors, metadata)
        return encoded

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file. Changes that are as large as their weights are read when they are merged.

        Raises:
            LoraMismatch: `zimage-lora` did not write the file, or it was altered since.
        """
        with _readable(file):
            opened, metadata = _open(file)
            about, keys = metadata.get("about", ""), sorted(opened.keys())
            if metadata.get("sha256") != _digest(about, keys, opened.get_tensor):
                raise LoraMismatch(f"{file} was altered after zimage-lora wrote it; prepare it again")
            return cls(msgspec.json.decode(about, type=About), _read_deltas(opened))

    def require_match(self, manifest: Manifest) -> None:
        """Check that the LoRA was prepared for these plans.

        Raises:
            LoraMismatch: it was not, or the plans are not refittable, or a change does not fit its weight.
        """
        self.about.require_match(manifest)
        shapes = {part: _part_shape(weight) for weight in manifest.refit_weights for part in weight.parts}
        for parameter, deltas in self.deltas.items():
            if parameter not in shapes:
                raise LoraMismatch(f"the LoRA changes {parameter}, which these plans do not have; prepare it again")
            for delta in deltas:
                if delta.shape != shapes[parameter]:
                    raise LoraMismatch(
                        f"the LoRA changes {list(delta.shape)} numbers of {parameter}, which has "
                        f"{list(shapes[parameter])} in these plans; prepare it again"
                    )

    def changes(self, graph: Graph) -> set[str]:
        """Return the names of a graph's weights that differ from the plan's."""
        scaling = self._scaling
        return {
            weight.name
            for weight in graph.refittable
            if weight.name in scaling.scales
            or scaling.exponents[weight.name] != weight.exponent
            or any(part in self.deltas for part in weight.parts)
        }

    def weights(self, graph: Graph, directory: Path) -> Iterator[tuple[str, Array]]:
        """Return name and value of each weight in `changes`, ready for `Plan.refit`, one after the other.

        Other threads merge one weight ahead. It takes memory for two weights, and some megabytes for each core.
        """
        changes, scaling = self.changes(graph), self._scaling
        with Merger() as merger:
            started: deque[tuple[str, Merged]] = deque()
            for weight in graph.refittable:
                if weight.name in scaling.scales:
                    yield weight.name, np.array(scaling.scales[weight.name], np.float32)
                elif weight.name in changes:
                    started.append((weight.name, self._start(merger, weight, base_weight(graph, weight, directory))))
                if len(started) > AHEAD:
                    name, merged = started.popleft()
                    yield name, merged.wait()
            for name, merged in started:
                yield name, merged.wait()

    @property
    def _scaling(self) -> Scaling:
        """The scaling for the strength: that of the next larger one of its sign."""
        fit = [
            scaling
            for scaling in self.about.scalings
            if scaling.strength * self.strength > 0 and abs(self.strength) <= abs(scaling.strength)
        ]
        assert fit, f"`at` checks strengths, and 0 is no LoRA; got {self.strength}"
        return min(fit, key=lambda scaling: abs(scaling.strength))

    def _start(self, merger: Merger, weight: RefitWeight, base: Array) -> Merged:
        summands = []
        along_columns = weight.transposed or base.ndim == 1  # a weight of one dimension counts as a row
        extent = base.shape[-1 if along_columns else 0] // len(weight.parts)
        for number, part in enumerate(weight.parts):
            row, column = (0, number * extent) if along_columns else (number * extent, 0)
            for delta in self.deltas.get(part, ()):
                summands.append(delta.times(self.strength).place(row, column, weight.transposed))
        return merger.start(base, summands, weight.exponent, self._scaling.exponents[weight.name])


def read_about(file: Path) -> About:
    """Read what a file was prepared for, and none of its tensors.

    Raises:
        LoraMismatch: `zimage-lora` did not write the file.
    """
    with _readable(file):
        return msgspec.json.decode(_open(file)[1].get("about", ""), type=About)


def is_prepared(file: Path) -> bool:
    """Return True if a file's metadata says that `zimage-lora` of any version wrote it."""
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


def _part_shape(weight: RefitWeight) -> tuple[int, ...]:
    """Return the shape that each part of a weight has in the checkpoint."""
    rows, *columns = reversed(weight.shape) if weight.transposed else weight.shape
    return rows // len(weight.parts), *columns


def _open(file: Path) -> tuple[Any, dict[str, str]]:
    """Open a prepared file, and return it with its metadata."""
    opened: Any = safetensors.safe_open(file, framework="np")
    metadata: dict[str, str] = opened.metadata() or {}
    found = metadata.get("format", "")
    if found == FORMAT:
        return opened, metadata
    if found.startswith(FORMATS):
        raise LoraMismatch(
            f"{file} was prepared by another version of zimage-lora, in the format {found!r}, this zimage-trt reads "
            f"{FORMAT!r}; prepare the LoRA that it was made from again"
        )
    raise LoraMismatch(
        f"{file} is not prepared for plans; prepare it with: "
        f"zimage-lora {file} --model CHECKPOINT --engines PLANS -o {file.stem}.lora"
    )


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise LoraMismatch(f"cannot read {file}: {error}") from error
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise LoraMismatch(f"{file} is not as zimage-lora writes it: {error}; prepare it again") from error


def _read_deltas(opened: Any) -> dict[str, tuple[Delta, ...]]:
    """Read the deltas of each parameter, except the values of dense ones."""
    fields: dict[tuple[str, int], dict[str, str]] = {}
    for key in sorted(opened.keys()):
        parameter, number, name = key.rsplit(".", 2)
        fields.setdefault((parameter, int(number)), {})[name] = key
    deltas: dict[str, tuple[Delta, ...]] = {}
    for (parameter, _), named in sorted(fields.items()):
        small = {name: opened.get_tensor(key) for name, key in named.items() if name != VALUES}
        values = named.get(VALUES)
        delta = read_delta(small, None if values is None else _stored(opened, values))
        deltas[parameter] = (*deltas.get(parameter, ()), delta)
    return deltas


def _stored(opened: Any, key: str) -> StoredArray:
    tensor = opened.get_slice(key)
    return StoredArray(partial(opened.get_tensor, key), tuple(tensor.get_shape()), tensor.get_dtype())


def _digest(about: str, keys: Iterable[str], read: Callable[[str], Array]) -> str:
    """Return the hex sha256 of a file's contents, of which one tensor after the other is in memory."""
    found = hashlib.sha256(about.encode())
    for key in keys:
        tensor = read(key)
        found.update(f"{key} {tensor.dtype} {tensor.shape}".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()
