"""Plan directories of z-image-nano's sizes with random weights, compared with DiffSynth and with probes."""

from dataclasses import replace
from pathlib import Path

from fakes.study import Held
from rich.console import Console

from engine.plan import directory as plans
from engine.plan.manifest import Manifest, Precision
from export.checkpoint.files import Checkpoint, Component
from export.compile.onnx_files import export_graphs
from export.compile.probes import verify
from export.graphs.checkpoint_graphs import make_graphs
from export.precision.dtypes import graph_precisions
from export.progress import BuildProgress
from nano.layout import NANO, configs
from nano.miniature import random_weights, tensor_shapes


def random_checkpoint(seed: int, folder: Path) -> Checkpoint:
    sizes = replace(NANO, seed=seed)
    files = configs(sizes)
    parts = {
        name: Component(
            name,
            files[f"{name}/config.json"],
            {key: Held(tensor, key) for key, tensor in random_weights(shapes, sizes).items()},
            (),
        )
        for name, shapes in tensor_shapes(sizes).items()
    }
    return Checkpoint(f"random-{seed}", folder, **parts, scheduler=files["scheduler/scheduler_config.json"])


def random_plans(seed: int, precision: Precision, like: Path, folder: Path) -> Manifest:
    """Write ONNX files and probes to `folder`; the model's facts and the profiles are those of the plans in `like`."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = random_checkpoint(seed, folder)
    facts = replace(plans.read(like), precision=precision, graphs={})
    precisions, progress = graph_precisions(precision, "rtx"), BuildProgress(Console(quiet=True))
    graphs = export_graphs(make_graphs(checkpoint, precisions), checkpoint, precisions, folder, progress)
    return replace(facts, graphs=verify(graphs, checkpoint, folder, facts, progress))
