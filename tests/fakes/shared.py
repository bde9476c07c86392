"""Files made once per test run and shared by its processes: built plans and traced graphs.

Under pytest-xdist every worker is a process with session fixtures of its own. A lock file lets the first worker that
needs a folder fill it while the others wait.
"""

import hashlib
import io
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
from filelock import FileLock

from export.compile import onnx_export
from export.graphs.graph_module import GraphModule

Trace = Callable[[GraphModule], ir.Model]


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Let `make` fill `folder` unless another process has done so; return the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


def share_traces(folder: Path) -> None:
    """Let this process trace no graph whose trace is in `folder`, and leave there what it traces."""
    if not isinstance(onnx_export.trace, SharedTraces):
        onnx_export.trace = SharedTraces(folder, onnx_export.trace)


class SharedTraces:
    """`onnx_export.trace` that traces equal modules once and reads their graph from a file afterwards."""

    def __init__(self, folder: Path, trace: Trace) -> None:
        self._folder, self._trace = folder, trace

    def __call__(self, module: GraphModule) -> ir.Model:
        def make(folder: Path) -> None:
            write(self._trace(module), folder)

        return load(made_once(self._folder / fingerprint(module), make))


class _Structure(pickle.Pickler):
    """Pickles a module without its weights' values and origins, and sets in an order that every process has."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, (set, frozenset)):
            return ("set", sorted(map(repr, obj)))
        is_weight = hasattr(obj, "load") and hasattr(obj, "source") and hasattr(obj, "shape")
        return ("weight", tuple(obj.shape)) if is_weight else None


def fingerprint(module: GraphModule) -> str:
    """Return a hash of everything that a trace depends on: classes, attributes, names, shapes and dtypes."""
    buffer = io.BytesIO()
    _Structure(buffer).dump(module)
    return f"{type(module).__name__}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}"


def write(model: ir.Model, folder: Path) -> None:
    """Write a traced graph; ONNX has no place for initializers without a value, so these go to a list."""
    weights = [
        (name, int(value.dtype or 0), list(value.shape or ()))
        for name, value in model.graph.initializers.items()
        if value.const_value is None
    ]
    names = list(model.graph.initializers)
    (folder / "weights.json").write_text(json.dumps({"weights": weights, "order": names}))
    (folder / "graph.onnx").write_bytes(quietly(ir.to_proto, model).SerializeToString())


def load(folder: Path) -> ir.Model:
    listed = json.loads((folder / "weights.json").read_text())
    model: ir.Model = quietly(ir.load, folder / "graph.onnx")
    initializers = model.graph.initializers
    valued = dict(initializers)
    used = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, dtype, shape in listed["weights"]:
        value = used.get(name) or ir.Value(name=name)
        value.type, value.shape = ir.TensorType(ir.DataType(dtype)), ir.Shape(shape)
        valued[name] = value
    initializers.clear()
    for name in listed["order"]:
        initializers[name] = valued[name]
    return model


def quietly(function: Callable[[Any], Any], argument: Any) -> Any:
    """Call a function of onnx_ir that warns about every weight without a value."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return function(argument)
    finally:
        logger.setLevel(level)
