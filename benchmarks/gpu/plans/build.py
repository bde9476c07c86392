"""Plans of the checked model and of z-image-nano, built by `build_engines` as users build them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.findings import Findings, LeftOut, Settings, read_figures
from benchmarks.gpu.model.checked_model import checkpoint_folder, flavor, profiles
from benchmarks.gpu.parts import FIRST, VARIANTS
from benchmarks.harness.report import Stopwatch
from engine.plan.directory import read
from export.build import BuildOptions, build_engines
from export.progress import BuildProgress


def build(settings: Settings, found: Findings) -> None:
    """Build the variant's plans, and read from them what is known before they run."""
    watch = Stopwatch()
    directory = build_variant(settings, refittable=False)
    manifest = read(directory, verify=False)
    sizes = {name: (directory / graph.file).stat().st_size for name, graph in manifest.graphs.items()}
    data = directory / f"{manifest.graphs['denoiser'].file}.data"  # ONNX keeps weights beside the file
    found.add(
        directory=str(directory.resolve()),
        builder=manifest.target.builder,
        precisions={name: graph.precision for name, graph in manifest.graphs.items()},
        profiles=[profile.name for profile in manifest.profiles],
        build_s=watch.seconds,
        plan_mb={name: size / 1e6 for name, size in sizes.items()},
        weights_mb={name: graph.weight_bytes / 1e6 for name, graph in manifest.graphs.items()},
        activation_mb={
            name: [size / 1e6 for size in graph.activation_bytes] for name, graph in manifest.graphs.items()
        },
    )
    megabytes = (data.stat().st_size if data.is_file() else sizes["denoiser"]) / 1e6
    found.answer(f"{watch.seconds:.0f} s by {manifest.target.builder}; the denoiser takes {megabytes:.0f} MB")


def build_variant(settings: Settings, *, refittable: bool) -> Path:
    """Build the plans of the settings' variant, or find those of an earlier run.

    Raises:
        LeftOut: this version of zimage-trt does not build the variant.
    """
    _, chosen = VARIANTS[settings.variant]
    options: dict[str, Any] = {**chosen}
    if missing := set(options) - {field.name for field in fields(BuildOptions)}:
        raise LeftOut(f"this version of build-engines has no option for {', '.join(missing)}")
    options |= {"profiles": profiles(settings), "refittable": refittable, "verify": False}  # errors: on the device
    return _build(str(checkpoint_folder(settings)), settings, options)


def build_nano(settings: Settings, model: Path) -> Path:
    """Build plans of z-image-nano with the default profiles and probes."""
    return _build(str(model), settings, {"precision": "fp32" if settings.device == "cpu" else "fp16"})


def _build(model: str, settings: Settings, chosen: dict[str, Any]) -> Path:
    kind = flavor(settings)
    capability = read_figures(settings.folder, FIRST).get("compute_capability")
    options = BuildOptions(
        model,
        settings.folder / "engines",
        flavor=kind,
        compute_capabilities=(str(capability),) if kind == "rtx" else (),
        **chosen,
    )
    return build_engines(options, BuildProgress(Console(stderr=True)))
