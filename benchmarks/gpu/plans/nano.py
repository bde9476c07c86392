"""The part `nano`: plans of all graphs of z-image-nano against DiffSynth's modules."""

from contextlib import closing

from benchmarks.gpu.cuda.calls import require
from benchmarks.gpu.findings import Findings, Settings
from benchmarks.gpu.model.accumulation import without_tf32
from benchmarks.gpu.plans.build import build_nano
from benchmarks.gpu.plans.graph_runs import WRONG, as_pixels, run_graph
from engine.backends.load import load_backend
from engine.options import RuntimeOptions
from engine.plan.directory import read
from engine.plan.manifest import GraphName
from export.checkpoint.files import open_checkpoint
from export.compile.parity import Reference, relative_l2, sample_inputs
from nano.layout import Z_IMAGE_NANO

NANO_SHAPES = ((16, 16, 20, 1), (18, 22, 40, 2))  # height and width in latents, prompt tokens, batch
KNOWN: tuple[GraphName, ...] = (
    "prompt_encoder",
    "denoiser",
    "vae_decoder",
)  # graphs that DiffSynth's modules can check


def nano(settings: Settings, found: Findings) -> None:
    """Compare each graph of z-image-nano's plans with DiffSynth's modules in FP32."""
    without_tf32()
    directory = build_nano(settings, Z_IMAGE_NANO)
    manifest = read(directory, verify=False)
    reference = Reference(open_checkpoint(str(Z_IMAGE_NANO)), settings.device)
    errors: dict[str, float] = {}
    with closing(load_backend(directory, manifest, RuntimeOptions())) as loaded:
        for name in KNOWN:
            for height, width, tokens, batch in NANO_SHAPES:
                samples = 1 if name == "vae_decoder" else batch
                given = sample_inputs(name, reference.config, height=height, width=width, tokens=tokens, batch=samples)
                expected = as_pixels(manifest.graphs[name], reference.forward(name)(given))
                error = relative_l2(run_graph(loaded, manifest, name, given).astype("float32"), expected)
                errors[name] = max(errors.get(name, 0.0), error if error == error else float("inf"))
                found.add(builder=manifest.target.builder, relative_l2=errors)
    require(max(errors.values()) < WRONG, f"the plans compute something else: relative L2 {errors}")
    found.answer("yes: relative L2 " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
