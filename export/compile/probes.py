"""Comparison of exported graphs with DiffSynth, on probes that the plan directory keeps.

ONNX Runtime runs the ONNX file, DiffSynth runs its own forward pass, both in FP32 with the same weights and inputs.
Both hold one layer's weights at a time. The inputs and DiffSynth's outputs are stored, so that a device can be
compared with them wherever the plans are loaded (`engine.self_test`).
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from engine.errors import BuildError
from engine.plan import probes
from engine.plan.manifest import ExpectedTensor, Graph, GraphName, Manifest, Precision, Probe, padded
from engine.plan.probes import Distance
from export.checkpoint.files import Checkpoint, Component
from export.compile import segments
from export.compile.parity import Array, Arrays, Reference, relative_l2
from export.compile.probe_inputs import ProbeInputs, probe_shapes
from export.compile.rounding import STRETCHES, Rounding
from export.progress import BuildProgress

# Relative L2 above which a build stops: of a graph with rounded weights, computed in FP32. z-image-nano has at most
# 1e-6 in FP32, 2e-4 with FP16 weights and 2e-3 with BF16 weights; dozens of layers amplify it. A wrong graph has 1e-1
# and more.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
LEVELS_TOLERANCE = 1e-3  # of an image in whole levels: some values are rounded to the next one
AMPLIFIED = 4.0  # times the simulated cost of rounding, which a build may exceed TOLERANCE by

FP32_ROUNDING = 2.0**-13  # of the simulated rounding, which has FP16's bits
PIXEL_BYTES = 7 << 10  # of the VAE's activations; 6.1 kB were measured in PyTorch, 5.0 kB in ONNX Runtime, at 256x1040
SCORES = 3 * 4  # bytes for each pair of tokens and head: scores, their softmax and a copy, in FP32; assumed
OVERHEAD = 2 << 30  # bytes: activations of probes, and what PyTorch and ONNX Runtime take for themselves


class Verification:
    """Probes of all graphs of a checkpoint, made and compared graph by graph."""

    def __init__(self, checkpoint: Checkpoint, plans: Manifest) -> None:
        self._inputs = ProbeInputs(checkpoint, plans)
        self._reference = Reference(checkpoint)
        self._embeds: dict[tuple[int, int], Array] = {}
        self._tensors: dict[str, Array] = {}
        self._keys: dict[bytes, str] = {}  # by content

    def check(self, name: GraphName, graph: Graph, directory: Path) -> Graph:
        """Compare a graph's ONNX file with DiffSynth; return the graph with its error and its probes.

        Raises:
            BuildError: an error exceeds the precision's tolerance, or is not finite.
        """
        inputs = self._inputs.make(name, self._embeds)
        made = self._expected(name, graph, inputs)
        got = segments.run(directory / graph.file, list(inputs.values()))
        worst = 0.0
        for (probe, tensors), outputs in zip(made, got, strict=True):
            for output, expected in probe.outputs.items():
                error = relative_l2(outputs[output], tensors[output])
                least = LEVELS_TOLERANCE if outputs[output].dtype.kind in "iu" else 0.0
                allowed = max(TOLERANCE[graph.precision], least, AMPLIFIED * expected.rounding)
                if not error <= allowed:  # also when it is NaN
                    raise BuildError(
                        f"{name}, probe {probe.name!r}: relative L2 of {output} {error:.1e} against DiffSynth in FP32, "
                        f"at most {allowed:.0e} expected of {graph.precision}"
                    )
                worst = max(worst, error)
        return replace(graph, parity=worst, probes=tuple(probe for probe, _ in made))

    def write(self, directory: Path) -> None:
        """Write the tensors of all probes."""
        probes.write(directory, self._tensors)

    def _expected(
        self, name: GraphName, graph: Graph, inputs: Mapping[str, Arrays]
    ) -> list[tuple[Probe, Mapping[str, Array]]]:
        """Return probes with DiffSynth's outputs."""
        batches, count = list(inputs.values()), len(inputs)
        roundings = [None, *(Rounding(graph.precision, stretch) for stretch in STRETCHES)]
        outputs = self._reference.run(name, batches * len(roundings), [r for r in roundings for _ in batches])
        found: list[tuple[Probe, Mapping[str, Array]]] = []
        for index, (probe, tensors) in enumerate(inputs.items()):
            exact, *rounded = outputs[index::count]
            if name == "prompt_encoder":
                self._embeds[tensors["input_ids"].shape] = exact["prompt_embeds"]
            kept = {key: self._keep(f"{name}/{probe}/{key}", tensor) for key, tensor in tensors.items()}
            expected = {}
            for key, tensor in exact.items():
                off = [Distance.between(one[key], tensor) for one in rounded]
                scale = FP32_ROUNDING if graph.precision == "fp32" else 1.0
                stored = self._keep(f"{name}/{probe}/{key}", tensor)
                whole, row = max(each.whole for each in off), max(each.row for each in off)
                expected[key] = ExpectedTensor(stored, scale * whole, scale * row)
            found.append((Probe(probe, kept, expected), exact))
        return found

    def _keep(self, key: str, tensor: Array) -> str:
        """Keep a tensor to be written; return the key of an equal one if there is one."""
        content = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode() + tensor.tobytes()).digest()
        known = self._keys.setdefault(content, key)
        self._tensors.setdefault(known, tensor)
        return known


def verify(
    graphs: Mapping[GraphName, Graph], checkpoint: Checkpoint, directory: Path, plans: Manifest, progress: BuildProgress
) -> dict[GraphName, Graph]:
    """Compare each ONNX file with DiffSynth, write the probes, and return the graphs with errors and probes.

    Raises:
        BuildError: a graph computes something else, or the memory does not suffice.
    """
    require_memory(checkpoint, plans)
    with progress.stage("reading DiffSynth's modules"):
        verification = Verification(checkpoint, plans)
    verified: dict[GraphName, Graph] = {}
    for name, graph in graphs.items():
        with progress.stage(f"{name}: comparing with DiffSynth"):
            verified[name] = verification.check(name, graph, directory)
        progress.console.print(f"{name}: relative L2 {verified[name].parity:.1e}", highlight=False)
    verification.write(directory)
    return verified


def needed_bytes(checkpoint: Checkpoint, plans: Manifest) -> int:
    """Return an upper bound of the memory for `verify`.

    The largest weight, which one segment holds as stored and in FP32, or a layer of DiffSynth's with a copy of it, or
    what the largest probes compute. Profiles without small sizes have large probes.
    """
    components = (checkpoint.transformer, checkpoint.text_encoder, checkpoint.vae)
    largest = max(math.prod(weight.shape) for part in components for weight in part.weights.values())
    layer = max(_layer_elements(part) for part in components)
    segment = 3 * segments.SEGMENT_BYTES
    heads = int(checkpoint.transformer.config["n_heads"])
    computed = max(
        max(PIXEL_BYTES * pixels, SCORES * heads * batch * tokens**2 + segment)
        for pixels, tokens, batch in _probe_sizes(plans)
    )
    return max(6 * largest + segment, 8 * layer, computed) + 4 * checkpoint.vae.parameters + OVERHEAD


def _probe_sizes(plans: Manifest) -> Iterator[tuple[int, int, int]]:
    """Yield pixels, tokens of image and prompt, and batch of each probe."""
    for shape in probe_shapes(plans):
        width, height = shape.size
        yield width * height, width * height // plans.model.size_multiple**2 + padded(shape.tokens), shape.batch


def require_memory(checkpoint: Checkpoint, plans: Manifest) -> None:
    """Raise BuildError if the memory for `verify` is not free."""
    needed, free = needed_bytes(checkpoint, plans), psutil.virtual_memory().available
    if needed > free:
        raise BuildError(
            f"comparing the graphs with DiffSynth needs up to {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are "
            "free; stop other programs, or use --no-verify, which leaves out the plans' self-test too"
        )


def _layer_elements(component: Component) -> int:
    """Return the number of elements of the largest layer: of the tensors whose names are equal up to a number."""
    layers: Counter[str] = Counter()
    for name, weight in component.weights.items():
        match = re.match(r".*?\.\d+\.", name)
        layers[match[0] if match else name] += math.prod(weight.shape)
    return max(layers.values())
