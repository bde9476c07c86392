"""ONNX files of a checkpoint's graphs, with weights at their precisions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engine.plan.manifest import Graph, GraphName, Precision
from export.checkpoint.files import Checkpoint
from export.checkpoint.weights import Fp16RangeError, Fp16SumError
from export.compile import onnx_export
from export.graphs.checkpoint_graphs import make_prompt_encoder
from export.graphs.graph_module import GraphModule
from export.precision.fp16 import Measured
from export.progress import BuildProgress


def export_graphs(
    graphs: Mapping[GraphName, GraphModule],
    checkpoint: Checkpoint,
    precisions: Mapping[GraphName, Precision],
    directory: Path,
    progress: BuildProgress,
    *,
    refittable: bool = False,
    keys: int | None = None,
) -> dict[GraphName, Graph]:
    """Write the ONNX files of graphs that `make_graphs` made.

    Args:
        precisions: precision of each graph; the VAE decoder's is also the fallback of the prompt encoder.
        refittable: record the places of the transformer's weights, so that plans can swap them.
        keys: largest number of tokens that the denoiser attends to; needed where it sums in FP16.

    Raises:
        Fp16RangeError: FP16 cannot hold the denoiser's products at any scale, or its sums.
    """
    exported: dict[GraphName, Graph] = {}
    for name, (module, measured) in _measure(graphs, checkpoint, precisions["vae_decoder"], progress, keys).items():
        path = directory / f"{name}.onnx"
        with progress.stage(f"{name}: tracing"):
            onnx = onnx_export.trace(module)
        with progress.stage(f"{name}: writing weights as {module.precision}"):
            attached = onnx_export.attach_weights(onnx, measured.weights)
            swapped = {n: w for n, w in attached.items() if n.startswith("transformer.")} if refittable else {}
            weight_bytes = onnx_export.weight_bytes(onnx)
            phase = progress.start("tensors", onnx_export.weight_count(onnx))
            onnx_export.write(onnx, path, phase.advance, swappable=swapped)
            phase.finish()
        graph = Graph(
            path.name,
            module.precision,
            module.inputs,
            module.outputs,
            weight_bytes=weight_bytes,
            products=measured.products,
        )
        if swapped:
            weights = onnx_export.refittable(onnx, swapped)
            graph = replace(graph, refittable=weights, weights_file=f"{path.name}.swappable")
        exported[name] = graph
    return exported


def _measure(
    graphs: Mapping[GraphName, GraphModule],
    checkpoint: Checkpoint,
    wide: Precision,
    progress: BuildProgress,
    keys: int | None,
) -> dict[GraphName, tuple[GraphModule, Measured]]:
    """Measure the bounds of each graph. A prompt encoder that leaves the range of FP16 is made again in `wide`."""
    measured: dict[GraphName, tuple[GraphModule, Measured]] = {}
    for name, graph in graphs.items():
        try:
            with progress.stage(f"{name}: bounding its products"):
                measured[name] = graph, graph.measure(keys)
        except Fp16SumError as error:
            raise Fp16SumError(f"{checkpoint.name}: {error}; use --accumulate fp32, or a smaller --profile") from error
        except Fp16RangeError as error:
            if name != "prompt_encoder":
                raise Fp16RangeError(f"{checkpoint.name}: {error}; use --{wide}") from error
            progress.console.print(f"{name}: using {wide}, since FP16 cannot hold it: {error}", highlight=False)
            graph = make_prompt_encoder(checkpoint, wide)
            measured[name] = graph, graph.measure()
    return measured
