"""The whole line of `build-engines`: checkpoint -> ONNX -> plans -> plan directory."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil

from engine.backend import PACKAGES
from engine.errors import BackendUnavailable, BuildError
from engine.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Flavor,
    Graph,
    GraphName,
    Manifest,
    Model,
    Precision,
    Profile,
    Rope,
    Target,
    encode,
)
from engine.prompt import TOKENIZER_FILE
from export import models, onnx_export, parity, plan_directory
from export.checkpoint import Checkpoint, open_checkpoint
from export.denoiser import Denoiser
from export.graph_module import GraphModule
from export.precision import graph_precisions
from export.profiles import default_profiles, dimensions, parse_profile
from export.progress import BuildProgress
from export.prompt_encoder import PromptEncoder
from export.prompt_format import read_prompt_format
from export.tensorrt_build import RTX_COMPUTE_CAPABILITIES, TensorRtBuilder, import_tensorrt
from export.vae_decoder import VaeDecoder

DEFAULT_STEPS = 8  # forward passes that Z-Image-Turbo is distilled for
VERIFY_COPIES = 3  # FP32 copies of the weights held while a graph is compared: DiffSynth's, ONNX Runtime's two


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What `build-engines` was asked for."""

    model: str
    output: Path
    precision: Precision = "fp16"
    flavor: Flavor | Literal["auto"] = "auto"
    profiles: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    transformer_file: Path | None = None
    verify: Literal["auto", "always", "never"] = "auto"


def build_engines(options: BuildOptions, progress: BuildProgress) -> Path:
    """Builds a plan directory, or finds it.

    Returns:
        The finished directory, which `<output>/current` now points to.

    Raises:
        CheckpointError, BuildError, BackendUnavailable: nothing that looks finished is left behind.
    """
    flavor = _choose_flavor(options, progress)
    builder = None if flavor == "onnx" else TensorRtBuilder(flavor, _capabilities(options, flavor), progress)
    checkpoint = open_checkpoint(options.model, options.transformer_file)
    graphs = _graphs(checkpoint, graph_precisions(options.precision, flavor))
    with progress.stage("hashing the checkpoint"):
        model = _describe(checkpoint)
    profiles = _profiles(options, checkpoint, model)
    target = Target(
        flavor, builder.name if builder else f"onnx opset {onnx_export.OPSET}", _capabilities(options, flavor)
    )
    inputs = {"model": asdict(model), "precision": options.precision, "target": asdict(target), "profiles": profiles}
    plan_id = plan_directory.plan_id(inputs)
    name = f"{model.name}-{options.precision}-{flavor}-{plan_id}"
    finished = options.output / name
    with plan_directory.exclusive(options.output, name):
        if plan_directory.find_finished(finished):
            progress.console.print(f"found {finished}, built from the same inputs")
            plan_directory.make_current(finished)
            return finished
        plan_directory.require_space(options.output, (1 if builder is None else 2) * checkpoint.nbytes)
        with plan_directory.unfinished(options.output, name) as directory:
            _copy_tokenizer(checkpoint, directory)
            onnx = _export(graphs, checkpoint, directory, options, flavor, progress)
            built = onnx if builder is None else _build_plans(builder, onnx, directory, profiles, model, progress)
            with progress.stage("hashing the plans"):
                files = plan_directory.list_files(directory)
            manifest = Manifest(
                SCHEMA_VERSION,
                plan_id,
                version("zimage-trt"),
                options.precision,
                model,
                target,
                profiles,
                built,
                files,
            )
            (directory / MANIFEST_FILE).write_bytes(encode(manifest))
            plan_directory.publish(directory, finished)
    return finished


def _choose_flavor(options: BuildOptions, progress: BuildProgress) -> Flavor:
    if options.flavor != "auto":
        return options.flavor
    flavor, why = _automatic_flavor(bool(options.compute_capabilities))
    progress.console.print(f"--flavor auto: {flavor}, since {why}", highlight=False)
    return flavor


def _automatic_flavor(targets_named: bool) -> tuple[Flavor, str]:
    import torch

    if targets_named:
        return "rtx", "--compute-capability names GPUs to build for ahead of time"
    if not torch.cuda.is_available():
        return "onnx", "there is no CUDA device here"
    for flavor in ("tensorrt", "rtx"):
        try:
            import_tensorrt(flavor)
        except BackendUnavailable:
            continue
        return flavor, f"there is a CUDA device and {PACKAGES[flavor]} is installed"
    return "onnx", "there is a CUDA device, but neither tensorrt nor tensorrt_rtx is installed"


def _capabilities(options: BuildOptions, flavor: Flavor) -> tuple[str, ...]:
    if flavor == "rtx":
        return options.compute_capabilities or RTX_COMPUTE_CAPABILITIES
    if options.compute_capabilities:
        raise BuildError(f"--compute-capability needs --flavor rtx, got {flavor}")
    if flavor == "tensorrt":
        import torch

        if not torch.cuda.is_available():
            raise BackendUnavailable("--flavor tensorrt builds for the GPU it runs on, and there is none here")
        return ("{}.{}".format(*torch.cuda.get_device_capability()),)
    return ()


def _graphs(checkpoint: Checkpoint, precisions: Mapping[GraphName, Precision]) -> dict[GraphName, GraphModule]:
    """The three graphs. Each gets modules of its own: precisions differ, and meta tensors cost nothing."""
    transformer, text_encoder = checkpoint.transformer, checkpoint.text_encoder
    return {
        "prompt_encoder": PromptEncoder(
            models.text_encoder(text_encoder), models.transformer(transformer), precisions["prompt_encoder"]
        ),
        "denoiser": Denoiser(models.transformer(transformer), precisions["denoiser"]),
        "vae_decoder": VaeDecoder(models.vae_decoder(checkpoint.vae), precisions["vae_decoder"]),
    }


def _describe(checkpoint: Checkpoint) -> Model:
    config, vae = checkpoint.transformer.config, checkpoint.vae.config
    return Model(
        name=checkpoint.name,
        weights_sha256=checkpoint.fingerprint(),
        latent_channels=config["in_channels"],
        vae_scale=2 ** (len(vae["block_out_channels"]) - 1),
        patch_size=config["all_patch_size"][0],
        caption_dim=config["dim"],
        rope=Rope(config["rope_theta"], tuple(config["axes_dims"]), tuple(config["axes_lens"])),
        prompt=read_prompt_format(checkpoint.directory / "tokenizer"),
        schedule_shift=checkpoint.scheduler["shift"],
        default_steps=DEFAULT_STEPS,
    )


def _profiles(options: BuildOptions, checkpoint: Checkpoint, model: Model) -> tuple[Profile, ...]:
    if options.profiles:
        return tuple(parse_profile(text, model) for text in options.profiles)
    return default_profiles(checkpoint.vae.config["sample_size"], model)


def _copy_tokenizer(checkpoint: Checkpoint, directory: Path) -> None:
    target = directory / TOKENIZER_FILE
    target.parent.mkdir()
    shutil.copyfile(checkpoint.directory / TOKENIZER_FILE, target)


def _export(
    graphs: Mapping[GraphName, GraphModule],
    checkpoint: Checkpoint,
    directory: Path,
    options: BuildOptions,
    flavor: Flavor,
    progress: BuildProgress,
) -> dict[GraphName, Graph]:
    """Writes the three ONNX files and compares each with DiffSynth's own forward pass."""
    precisions = graph_precisions(options.precision, flavor)
    exported: dict[GraphName, Graph] = {}
    for name, module in graphs.items():
        path = directory / f"{name}.onnx"
        with progress.stage(f"{name}: tracing"):
            onnx = onnx_export.trace(module)
        with progress.stage(f"{name}: writing weights as {precisions[name]}"):
            onnx_export.attach_weights(onnx, module.weights)
            phase = progress.start("tensors", onnx_export.weight_count(onnx))
            onnx_export.write(onnx, path, phase.advance)
            phase.finish()
        exported[name] = Graph(path.name, precisions[name], module.inputs, module.outputs)
    _verify(exported, checkpoint, directory, options, progress)
    return exported


def _verify(
    graphs: Mapping[GraphName, Graph],
    checkpoint: Checkpoint,
    directory: Path,
    options: BuildOptions,
    progress: BuildProgress,
) -> None:
    if options.verify == "never":
        return
    needed, free = VERIFY_COPIES * _fp32_bytes(checkpoint), psutil.virtual_memory().available
    if options.verify == "auto" and needed > free:
        progress.console.print(
            f"parity with DiffSynth is not checked: it needs about {needed / 1e9:.0f} GB of memory, "
            f"{free / 1e9:.0f} GB are free (--verify always does it all the same)"
        )
        return
    with progress.stage("loading DiffSynth's modules"):
        reference = parity.Reference(checkpoint)
    for name, graph in graphs.items():
        if graph.precision == "bf16":
            progress.console.print(f"{name}: parity is not checked, ONNX Runtime has no BF16 kernels on a CPU")
            continue
        with progress.stage(f"{name}: comparing with DiffSynth"):
            error = parity.check(name, directory / graph.file, graph.precision, reference)
        progress.console.print(f"{name}: relative L2 {error:.1e}", highlight=False)


def _fp32_bytes(checkpoint: Checkpoint) -> int:
    components = (checkpoint.transformer, checkpoint.text_encoder, checkpoint.vae)
    return 4 * sum(weight.count for component in components for weight in component.weights.values())


def _build_plans(
    builder: TensorRtBuilder,
    onnx: Mapping[GraphName, Graph],
    directory: Path,
    profiles: tuple[Profile, ...],
    model: Model,
    progress: BuildProgress,
) -> dict[GraphName, Graph]:
    """Builds each ONNX file into a plan and removes it."""
    shapes = [dimensions(profile, model) for profile in profiles]
    built: dict[GraphName, Graph] = {}
    for name, graph in onnx.items():
        path = directory / graph.file
        with progress.stage(f"{name}: building with {builder.name}"):
            plan = builder.build(path, graph, shapes)
            (directory / f"{name}.plan").write_bytes(plan.serialized)
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
        built[name] = Graph(f"{name}.plan", graph.precision, graph.inputs, graph.outputs, plan.activation_bytes)
    return built
