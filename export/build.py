"""The steps of `build-engines`: checkpoint -> ONNX -> plans -> plan directory."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from engine.errors import BuildError
from engine.plan.directory import MANIFEST_FILE, encode
from engine.plan.guide import GUIDE_FILE, Guide
from engine.plan.manifest import (
    SCHEMA_VERSION,
    Accumulation,
    Flavor,
    Graph,
    GraphName,
    Manifest,
    MergedLora,
    Model,
    Precision,
    PreviewProjection,
    Profile,
    Rope,
    Target,
)
from engine.plan.shapes import dimensions, longest_sequence
from engine.sampling.tokenizer import TOKENIZER_FILE
from export import plan_directory
from export.checkpoint import models
from export.checkpoint.configs import positive
from export.checkpoint.defaults import defaults_for
from export.checkpoint.files import Checkpoint, open_checkpoint
from export.checkpoint.lora import Lora, merge
from export.checkpoint.prompt_format import read_prompt_format
from export.compile import onnx_export, plan_size, preview
from export.compile.onnx_files import export_graphs
from export.compile.probes import verify
from export.compile.profiles import default_profiles, parse_profile
from export.compile.target import choose_flavor, compute_capabilities, require_distinct, require_refit
from export.compile.tensorrt_build import TensorRtBuilder
from export.graphs.checkpoint_graphs import make_graphs
from export.graphs.graph_module import GraphModule
from export.precision.dtypes import graph_precisions, require_accumulation
from export.progress import BuildProgress


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build, as on the command line of `build-engines`.

    Attributes:
        name: the model's name, None for the hub id or the name of the checkpoint's folder.
        default_steps, default_guidance: of requests that name none; None for what fits the checkpoint.
    """

    model: str
    output: Path
    precision: Precision = "fp16"
    accumulation: Accumulation = "fp32"
    flavor: Flavor | Literal["auto"] = "auto"
    profiles: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    transformer_file: Path | None = None
    loras: tuple[Lora, ...] = ()
    refittable: bool = False
    image_input: bool = True
    verify: bool = True
    name: str | None = None
    default_steps: int | None = None
    default_guidance: float | None = None


def build_engines(options: BuildOptions, progress: BuildProgress) -> Path:
    """Build a plan directory, or find the one that an earlier build with the same inputs left.

    Returns:
        The finished directory. `<output>/current` points to it.

    Raises:
        CheckpointError: the checkpoint or a LoRA is missing files, damaged or not supported.
        BuildError: the options contradict each other, or the build failed. No partial directory is left behind.
        BackendUnavailable: this machine lacks a package or a GPU that the flavor needs.
    """
    build = _open(options, progress)
    finished = options.output / build.name
    with plan_directory.exclusive(options.output, build.name):
        known = plan_directory.find_finished(finished)
        if known is not None and (known.is_verified or not options.verify):
            progress.console.print(f"found {finished}, which was built from the same inputs")
            plan_directory.make_current(finished)
            return finished
        plan_directory.require_space(options.output, build.disk_bytes)
        with plan_directory.unfinished(options.output, build.name) as directory:
            manifest = _fill(directory, build, options, progress)
            (directory / MANIFEST_FILE).write_bytes(encode(manifest))
            plan_directory.publish(directory, finished)
    return finished


@dataclass(frozen=True, slots=True)
class _Build:
    """A build whose options and inputs are known to fit each other.

    Attributes:
        builder: None for ONNX Runtime.
        draft: manifest without what the build finds out.
    """

    checkpoint: Checkpoint
    graphs: Mapping[GraphName, GraphModule]
    precisions: Mapping[GraphName, Precision]
    builder: TensorRtBuilder | None
    draft: Manifest

    @property
    def name(self) -> str:
        """Name of the plan directory."""
        draft = self.draft
        return f"{draft.model.name.replace('/', '--')}-{draft.precision}-{draft.target.flavor}-{draft.plan_id}"

    @property
    def disk_bytes(self) -> int:
        """Peak disk space: the ONNX files and, with TensorRT, the plans beside them."""
        components = {
            "prompt_encoder": self.checkpoint.text_encoder,
            "denoiser": self.checkpoint.transformer,
            "vae_decoder": self.checkpoint.vae,
            "vae_encoder": self.checkpoint.vae,
        }
        one = sum(components[n].parameters * (4 if own == "fp32" else 2) for n, own in self.precisions.items())
        return one if self.builder is None else 2 * one


def _open(options: BuildOptions, progress: BuildProgress) -> _Build:
    """Check the options, open the checkpoint and hash it."""
    flavor = choose_flavor(options.flavor, bool(options.compute_capabilities), progress)
    require_accumulation(options.accumulation, options.precision, flavor)
    capabilities = compute_capabilities(flavor, options.compute_capabilities)
    if options.refittable and options.loras:
        raise BuildError("--refittable has no use with --lora: plans with a merged LoRA take no other; leave one out")
    if options.refittable:
        require_refit(flavor, capabilities)
    precisions = graph_precisions(options.precision, flavor, capabilities)
    builder = None if flavor == "onnx" else TensorRtBuilder(flavor, capabilities, progress)
    checkpoint = merge(_open_checkpoint(options, progress), options.loras)
    if not (options.image_input and _has_vae_encoder(checkpoint, progress)):
        del precisions["vae_encoder"]
    graphs = make_graphs(checkpoint, precisions, options.accumulation)
    facts = describe_model(checkpoint, options)
    profiles = _profiles(options, checkpoint, facts)  # wrong ones are refused before the weights are hashed
    with progress.stage("hashing the checkpoint"):
        loras = tuple(MergedLora(lora.file.name, lora.fingerprint(), lora.scale) for lora in options.loras)
        model = replace(facts, weights_sha256=checkpoint.fingerprint(), loras=loras)
    target = Target(flavor, builder.name if builder else f"onnx opset {onnx_export.OPSET}", capabilities)
    other_inputs = repr((Guide.read(checkpoint.directory), sorted(graphs)))
    draft = _draft(options, model, target, profiles, other_inputs)
    return _Build(checkpoint, graphs, precisions, builder, draft)


def _fill(directory: Path, build: _Build, options: BuildOptions, progress: BuildProgress) -> Manifest:
    """Write all files of a plan directory but its manifest, and return the manifest."""
    checkpoint, draft = build.checkpoint, build.draft
    _copy_tokenizer(checkpoint, directory)
    if (guide := checkpoint.directory / GUIDE_FILE).is_file():
        shutil.copyfile(guide, directory / GUIDE_FILE)
    fitted = fit_preview(checkpoint, progress)
    keys = longest_sequence(draft.profiles, draft.model)
    built = export_graphs(
        build.graphs, checkpoint, build.precisions, directory, progress, refittable=options.refittable, keys=keys
    )
    if options.verify:
        built = verify(built, checkpoint, directory, draft, progress)
    if build.builder is not None:
        built = _build_plans(build.builder, built, directory, draft, progress)
    with progress.stage("hashing the plans"):
        return replace(draft, graphs=built, files=plan_directory.list_files(directory), preview=fitted)


def _open_checkpoint(options: BuildOptions, progress: BuildProgress) -> Checkpoint:
    """Open the checkpoint, and print what its configs were taken from where there are none."""
    checkpoint = open_checkpoint(options.model, options.transformer_file, options.name)
    components = (checkpoint.transformer, checkpoint.text_encoder, checkpoint.vae)
    if derived := [component.name for component in components if component.derived]:
        progress.console.print(
            f"no config.json of {', '.join(derived)}: sizes are those of the tensors, and all else, such as the "
            "default image size of 1024x1024, is Z-Image-Turbo's",
            highlight=False,
            soft_wrap=True,
        )
    return checkpoint


def _has_vae_encoder(checkpoint: Checkpoint, progress: BuildProgress) -> bool:
    found = models.has_vae_encoder(checkpoint.vae)
    if not found:
        progress.console.print(f"{checkpoint.name} will take no images as inputs: its vae/ has no encoder")
    return found


def fit_preview(checkpoint: Checkpoint, progress: BuildProgress) -> PreviewProjection | None:
    """Fit the projection for previews of unfinished images; None, with a printed line, if the VAE has no encoder."""
    encoder = models.vae_encoder(checkpoint.vae)
    if encoder is None:
        progress.console.print(f"{checkpoint.name} will have no previews: its vae/ has no encoder to fit them with")
        return None
    with progress.stage("fitting the preview"):
        fitted = preview.fit(encoder)
    progress.console.print(f"preview: R2 {fitted.r2:.3f} on held-out images", highlight=False)
    return fitted


def _draft(
    options: BuildOptions, model: Model, target: Target, profiles: tuple[Profile, ...], other_inputs: str
) -> Manifest:
    """Make the part of the manifest that is known before the build. Its hash names the directory."""
    draft = Manifest(
        schema_version=SCHEMA_VERSION,
        plan_id="",
        zimage_trt=version("zimage-trt"),
        precision=options.precision,
        model=model,
        target=target,
        profiles=profiles,
        graphs={},
        files=(),
        refittable=options.refittable,
        accumulation=options.accumulation,
    )
    return replace(draft, plan_id=plan_directory.plan_id(encode(draft) + other_inputs.encode()))


def describe_model(checkpoint: Checkpoint, options: BuildOptions) -> Model:
    """Return the facts of a checkpoint, without the hashes of its weights and of LoRAs."""
    config, vae = checkpoint.transformer.config, checkpoint.vae.config
    shift = positive(checkpoint.scheduler, "shift")
    steps, guidance = defaults_for(shift)
    return Model(
        name=checkpoint.name,
        weights_sha256="",
        latent_channels=config["in_channels"],
        vae_scale=2 ** (len(vae["block_out_channels"]) - 1),
        patch_size=config["all_patch_size"][0],
        prompt_embeds_dim=config["dim"],
        rope=Rope(config["rope_theta"], tuple(config["axes_dims"]), tuple(config["axes_lens"])),
        prompt=read_prompt_format(checkpoint.directory / "tokenizer"),
        schedule_shift=shift,
        default_steps=steps if options.default_steps is None else options.default_steps,
        default_guidance=guidance if options.default_guidance is None else options.default_guidance,
    )


def _profiles(options: BuildOptions, checkpoint: Checkpoint, model: Model) -> tuple[Profile, ...]:
    require_distinct("--profile", options.profiles)
    if options.profiles:
        return tuple(parse_profile(text, model) for text in options.profiles)
    return default_profiles(int(checkpoint.vae.config["sample_size"]), model)


def _copy_tokenizer(checkpoint: Checkpoint, directory: Path) -> None:
    target = directory / TOKENIZER_FILE
    target.parent.mkdir()
    shutil.copyfile(checkpoint.directory / TOKENIZER_FILE, target)


def _build_plans(
    builder: TensorRtBuilder,
    onnx: Mapping[GraphName, Graph],
    directory: Path,
    draft: Manifest,
    progress: BuildProgress,
) -> dict[GraphName, Graph]:
    """Build a plan from each ONNX file, and remove the file."""
    built: dict[GraphName, Graph] = {}
    for name, graph in onnx.items():
        path, plan = directory / graph.file, directory / f"{name}.plan"
        shapes = [dimensions(name, profile, draft.model) for profile in draft.profiles]
        with progress.stage(f"{name}: building with {builder.name}"):
            activation_bytes = builder.build(path, graph, shapes, plan)
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
        built[name] = replace(graph, file=plan.name, activation_bytes=activation_bytes)
        for line in plan_size.describe(name, built[name], plan.stat().st_size):
            progress.console.print(line, highlight=False)
    return built
