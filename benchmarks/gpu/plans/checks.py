"""The parts of gpu-check that run plans of the checked model: errors, speed, first passes, memory, closing.

Like the runtime they import neither torch nor DiffSynth.
"""

import statistics
import time
from contextlib import closing
from dataclasses import replace

from benchmarks.gpu.cuda.calls import require
from benchmarks.gpu.findings import Figures, Findings, Settings
from benchmarks.gpu.model.checked_model import LAYERS, main_side, plan_directory, roofline, timed_sides
from benchmarks.gpu.model.comparison_cases import load
from benchmarks.gpu.plans.graph_runs import WRONG, run_graph
from engine.backends.cuda import CudaRuntime
from engine.backends.load import load_backend
from engine.backends.vram import VramPlan
from engine.errors import UnsupportedShape
from engine.options import CudaGraphs, RuntimeOptions
from engine.pipeline import Pipeline, warm_up
from engine.plan.directory import read
from engine.plan.manifest import Manifest
from engine.request import ImageRequest
from engine.sampling.schedule import sigmas
from engine.size import Size

PROMPT = "a red circle on a blue background"
PASSES = 10


def errors(settings: Settings, found: Findings) -> None:
    """Compare the denoiser's plan with DiffSynth in FP32, usual inputs and those along the worst rows."""
    directory = plan_directory(settings)
    manifest, measured = read(directory, verify=False), dict[str, float]()
    with closing(load_backend(directory, manifest, RuntimeOptions())) as loaded:
        for name, case in load(settings).items():
            if _covers(manifest, case.side):
                measured[name] = case.velocity_error(run_graph(loaded, manifest, "denoiser", case.inputs))
                found.add(relative_l2=measured)
    found.answer(
        "relative L2 of the velocity: " + "; ".join(f"{name}: {error:.1e}" for name, error in measured.items())
    )
    require(max(measured.values()) < WRONG, f"the plan computes something else: relative L2 {measured}")


def speed(settings: Settings, found: Findings) -> None:
    """Time steps with and without CUDA graphs."""
    directory = plan_directory(settings)
    manifest, rows = read(directory, verify=False), dict[str, Figures]()
    sides = [side for side in timed_sides(settings) if _covers(manifest, side)]
    modes: tuple[CudaGraphs, ...] = ("off", "on")
    for mode in modes:
        with Pipeline.load(directory, RuntimeOptions(cuda_graphs=mode), verify=False) as pipeline:
            for side in sides:
                milliseconds = _step_ms(pipeline, side, 3 if settings.quick else 7)
                row = rows.setdefault(str(side), {})
                row |= {f"graphs_{mode}_ms": milliseconds}
                row |= {f"graphs_{mode}_ms_{LAYERS}_layers": milliseconds * LAYERS / settings.layers}
                found.add(step=rows)
    floors = {str(side): roofline(settings).get(str(side), {}) for side in sides}
    found.add(roofline_ms=floors)
    rate = "fp32" if settings.device == "cpu" else settings.variant.replace("-", "_")
    found.answer(
        f"a step of {settings.layers} layers: " + "; ".join(_line(n, r, floors[n].get(rate)) for n, r in rows.items())
    )


def passes(settings: Settings, found: Findings) -> None:
    """Time the first passes of a new shape, then those of a shape that was warmed up."""
    directory, side = plan_directory(settings), main_side(settings)
    options = RuntimeOptions(cuda_graphs="off", runtime_cache=settings.folder / "cache" / f"kernels-{time.time_ns()}")
    started = time.perf_counter()
    with Pipeline.load(directory, options, verify=False) as pipeline:
        found.add(load_s=time.perf_counter() - started)
        new = [_pass_ms(pipeline, side) for _ in range(PASSES)]
        found.add(new_shape_ms=new)
        found.answer(before := f"first {new[0]:.4g} ms, second {new[1]:.4g}, tenth {new[-1]:.4g}")
        started = time.perf_counter()
        warm_up(pipeline, [Size(side, side)])
        found.add(warm_up_s=time.perf_counter() - started, warmed_ms=[_pass_ms(pipeline, side) for _ in range(3)])
    seconds, warmed = found.figures["warm_up_s"], found.figures["warmed_ms"]
    found.answer(f"{before}; {warmed[-1]:.4g} after warm-up, which takes {seconds:.3g} s for all prompt lengths")


def memory(settings: Settings, found: Findings) -> None:
    """Read the GPU's memory after loading, and after the first image of each size."""
    directory, cuda = plan_directory(settings), CudaRuntime()
    manifest = read(directory, verify=False)
    planned = VramPlan.of(directory, manifest, range(len(manifest.profiles)), offload=False, slots=2)
    before = cuda.memory_info()[0]
    found.add(planned_gb=planned.needed / 1e9, table=planned.table().splitlines())
    sides = [side for side in (512, 640, 768, 896, 1024, 2048) if _covers(manifest, side)]
    with Pipeline.load(directory, verify=False) as pipeline:
        taken = {"loaded": before - cuda.memory_info()[0]}
        for side in sides:
            pipeline.generate(ImageRequest(PROMPT, side, side, num_inference_steps=8))
            taken[f"after {side}"] = before - cuda.memory_info()[0]
            found.add(taken_gb={name: size / 1e9 for name, size in taken.items()})
    left = before - cuda.memory_info()[0]
    found.add(left_after_closing_gb=left / 1e9)
    most = max(taken.values())
    found.answer(
        f"{most / 1e9:.2f} GB at most, planned {planned.needed / 1e9:.2f}; {left / 1e9:.2f} left after closing"
    )
    require(most <= planned.needed, "more memory was taken than planned")


def close(settings: Settings, found: Findings) -> None:
    """Close right after the first pass of a new shape, while kernels may still be compiled. The limit finds a hang."""
    directory, seconds = plan_directory(settings), list[float]()
    for index, side in enumerate((64, 80, 96) if settings.quick else (512, 768, 1024)):
        options = RuntimeOptions(runtime_cache=settings.folder / "cache" / f"kernels-{time.time_ns()}-{index}")
        pipeline = Pipeline.load(directory, options, verify=False)
        _enqueue_pass(pipeline, side)
        started = time.perf_counter()
        pipeline.close()
        seconds.append(time.perf_counter() - started)
        found.add(close_s=seconds)
    found.answer(f"yes, after {max(seconds):.2f} s at most")


def _line(side: str, row: Figures, floor: float | None) -> str:
    """Return the times of a step in words, beside the roofline where it was measured."""
    least = "not measured" if floor is None else f"{floor:.3g}"
    on, off = row["graphs_on_ms"], row["graphs_off_ms"]
    return f"{side}x{side} {on:.3g} ms with CUDA graph, {off:.3g} without, roofline {least}"


def _covers(manifest: Manifest, side: int) -> bool:
    try:
        manifest.profile_for(Size(side, side))
    except UnsupportedShape:
        return False
    return True


def _step_ms(pipeline: Pipeline, side: int, images: int) -> float:
    """Return the median of a step by the device's clock, after two images that capture CUDA graphs."""
    request = ImageRequest(PROMPT, side, side)
    done = [pipeline.generate(request) for _ in range(images)][2:]
    return 1e3 * statistics.median(image.seconds.denoiser / image.num_inference_steps for image in done)


def _pass_ms(pipeline: Pipeline, side: int) -> float:
    """Return the milliseconds of one pass by the host's clock, from an idle device to an idle device."""
    started = time.perf_counter()
    _enqueue_pass(pipeline, side)
    pipeline.synchronize()
    return 1e3 * (time.perf_counter() - started)


def _enqueue_pass(pipeline: Pipeline, side: int) -> None:
    model = pipeline.manifest.model
    shape = replace(ImageRequest(PROMPT), width=side, height=side).size(pipeline.manifest)
    latents = pipeline.memory.write("latents", pipeline.noise(0, shape))
    after = pipeline.memory.view("latents_next", model.latents_shape(shape))
    prompt_embeds = pipeline.memory.view("prompt_embeds", (1, 64, model.prompt_embeds_dim))
    levels = sigmas(8, model.schedule_shift)
    pipeline.step(latents, after, prompt_embeds, levels[:1], levels[1:2])
