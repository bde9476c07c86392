"""ONNX files run in segments, so that the weights of one segment at a time are in memory.

A segment is a range of nodes in topological order whose weights take about SEGMENT_BYTES. ONNX Runtime runs each as a
model of its own, for all inputs, before the next one is opened. Knows ONNX files; not the meaning of graphs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from export.compile.parity import widen

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

SEGMENT_BYTES = 256 << 20  # of stored weights; FP16 and BF16 take twice as much in memory, since they become FP32
LARGE = 1 << 20  # bytes of a weight that is handed over rather than copied into the model's own bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of nodes.

    Attributes:
        inputs, outputs: values that enter and leave it.
    """

    nodes: range
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def run(path: Path, batches: Sequence[Mapping[str, Array]], *, limit: int = SEGMENT_BYTES) -> list[Arrays]:
    """Run an ONNX file in FP32 for several sets of inputs and return the outputs of each, by name.

    Narrower floats become FP32, and weights keep their values: ONNX Runtime has no BF16 on a CPU, and what it rounds to
    FP16 depends on the nodes around.

    Args:
        limit: bytes of stored weights above which a segment ends.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    outputs = [value.name for value in model.graph.output]
    values: list[Arrays] = [dict(batch) for batch in batches]
    cut = segments(model, limit)
    for index, segment in enumerate(cut):
        session = _session(_extract(model, segment), path.parent)
        needed = {*outputs, *(name for later in cut[index + 1 :] for name in later.inputs)}
        for known in values:
            inputs = {name: known[name] for name in segment.inputs}
            known |= dict(zip(segment.outputs, session.run(list(segment.outputs), inputs), strict=True))
            for name in known.keys() - needed:
                del known[name]
        del session  # before the next one is opened
    return [{name: known[name] for name in outputs} for known in values]


def segments(model: onnx.ModelProto, limit: int) -> list[Segment]:
    """Cut a graph into segments."""
    graph, stored = model.graph, {tensor.name: _stored_bytes(tensor) for tensor in model.graph.initializer}
    ranges = list(_ranges(graph, stored, limit))
    made = [{name for i in nodes for name in graph.node[i].output} for nodes in ranges]
    used = [{name for i in nodes for name in graph.node[i].input if name} - stored.keys() for nodes in ranges]
    final = {value.name for value in graph.output}
    return [
        Segment(
            nodes,
            tuple(sorted(used[index] - made[index])),
            tuple(sorted(made[index] & final.union(*used[index + 1 :]))),
        )
        for index, nodes in enumerate(ranges)
    ]


def _ranges(graph: onnx.GraphProto, stored: Mapping[str, int], limit: int) -> Iterator[range]:
    start, inside = 0, set[str]()
    for index, node in enumerate(graph.node):
        added = {name for name in node.input if name in stored} - inside
        if index > start and sum(stored[name] for name in inside | added) > limit:
            yield range(start, index)
            start, inside = index, set()
        inside |= added
    yield range(start, len(graph.node))


def _extract(model: onnx.ModelProto, segment: Segment) -> onnx.ModelProto:
    """Return a segment as a model; its large weights stay in the file."""
    graph = model.graph
    nodes = [graph.node[i] for i in segment.nodes]
    used = {name for node in nodes for name in node.input}
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    extracted = onnx.helper.make_graph(
        nodes,
        "segment",
        [onnx.helper.make_tensor_value_info(name, types[name], None) for name in segment.inputs],
        [onnx.helper.make_tensor_value_info(name, types[name], None) for name in segment.outputs],
        [tensor for tensor in graph.initializer if tensor.name in used],
    )
    return onnx.helper.make_model(extracted, opset_imports=model.opset_import, ir_version=model.ir_version)


def _session(model: onnx.ModelProto, folder: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # keeps what it once took
    options.add_session_config_entry("session.disable_prepacking", "1")  # copies weights, for a few runs
    widened = ir.from_proto(model)
    ir.external_data.set_base_dir(widened.graph, folder)
    widen(widened, ir.DataType.FLOAT)
    weights = _take_out(widened)
    options.add_external_initializers(list(weights), list(weights.values()))
    content = ir.to_proto(widened).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _take_out(model: ir.Model) -> dict[str, Any]:
    """Replace the weights of a model that are large or in a file by references, and return them by name."""
    taken = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) or (tensor is not None and tensor.nbytes > LARGE):
            taken[name] = ort.OrtValue.ortvalue_from_numpy(np.asarray(tensor.numpy(), order="C"))
            value.const_value = ir.ExternalTensor(
                "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape), name=name, base_dir=""
            )
    return taken


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
