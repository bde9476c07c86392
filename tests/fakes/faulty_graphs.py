"""ONNX files that compute something almost right: what a wrong kernel gives without an error."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from engine.plan.manifest import GraphName

HEAD, DIM = 64, 192  # of z-image-nano


@dataclass(frozen=True)
class GraphFault:
    graph: GraphName
    weight: str | None  # None for the mask of causal attention
    change: Callable[[np.ndarray], None]


def zero_head(output: np.ndarray) -> None:
    output[HEAD : 2 * HEAD] = 0  # [inputs, outputs]


def exchange_value_heads(joined: np.ndarray) -> None:
    first, second = (joined[:, 2 * DIM + i * HEAD : 2 * DIM + (i + 1) * HEAD] for i in (0, 1))
    first[:], second[:] = second.copy(), first.copy()


def scale(by: float) -> Callable[[np.ndarray], None]:
    def change(weight: np.ndarray) -> None:
        weight *= by

    return change


def forget(mask: np.ndarray) -> None:
    mask[...] = 0


GRAPH_FAULTS = {
    "one head of one layer": GraphFault("denoiser", "transformer.layers.3.attention.to_out.0.weight", zero_head),
    "values of two heads exchanged": GraphFault(
        "denoiser", "transformer.layers.3.attention.to_q+to_k+to_v.weight", exchange_value_heads
    ),
    "scores without their scale": GraphFault(
        "denoiser", "transformer.layers.3.attention.norm_q.weight", scale(HEAD**0.5)
    ),
    "scores a fifth too large": GraphFault("denoiser", "transformer.layers.3.attention.norm_q.weight", scale(1.2)),
    "a causal mask that is missing": GraphFault("prompt_encoder", None, forget),
}


def plant(fault: GraphFault, directory: Path, folder: Path) -> Path:
    """Copy the fault's graph from a plan directory into `folder`, change it, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in directory.glob(f"{fault.graph}.onnx*"):
        shutil.copy(file, folder)
    path = folder / f"{fault.graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    if fault.weight is None:
        [mask] = [t for t in model.graph.initializer if not t.external_data and _is_mask(t)]
        values = onnx.numpy_helper.to_array(mask).copy()
        fault.change(values)
        mask.CopyFrom(onnx.numpy_helper.from_array(values, mask.name))
        onnx.save(model, path)
        return path
    [tensor] = [t for t in model.graph.initializer if t.name == fault.weight]
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    file = path.with_name(where["location"])
    data = np.memmap(file, dtype, "r+", int(where.get("offset", 0)), tuple(tensor.dims))
    fault.change(data)
    data.flush()
    return path


def _is_mask(tensor: onnx.TensorProto) -> bool:
    values = onnx.numpy_helper.to_array(tensor)
    return values.size == 1 and values.dtype.kind != "i" and float(values.min()) < -6e4
