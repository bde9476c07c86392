"""The part `cuda-loop`: images that join and leave a running loop on the device, against each alone in numpy."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from benchmarks.gpu.cuda.calls import require
from benchmarks.gpu.cuda.images import MODES, PROMPTS, SEED, Bench, equal_images, open_bench
from benchmarks.gpu.cuda.kernel_graphs import LORA, host_pipeline
from benchmarks.gpu.cuda.kernel_plan import KernelDevice
from benchmarks.gpu.findings import Figures, Findings, Settings
from benchmarks.harness.report import Stopwatch
from engine.array import Array
from engine.options import CudaGraphs, RuntimeOptions
from engine.pipeline import Pipeline, warm_up
from engine.request import ImageRequest
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.scheduler.events import Denoised, Failed, Passed, Stepped, Switched
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_registry import LoraRegistry
from engine.size import Size

SLOTS = 5
PREVIEWS = 2
GAINING = (1.0, 1.1, 1.2, 1.3)  # seconds of a pass by batch: batches gain, so the loop makes them
LONGEST = 2000  # steps of the loop


@dataclass(frozen=True, slots=True)
class Arrival:
    """An image, the step of the loop before which it is submitted, and the one before which it is cancelled."""

    request: ImageRequest
    submit_at: int
    cancel_at: int | None = None


@dataclass
class Outcome:
    """Images, previews and events of a workload, by the number of the arrival."""

    pixels: dict[int, Array] = field(default_factory=dict)
    estimates: dict[int, list[Array]] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    pass_seconds: float = 0.0
    switches: list[float] = field(default_factory=list)


def loop(settings: Settings, found: Findings) -> None:
    """Run the cases on the GPU."""
    from benchmarks.gpu.cuda.nvrtc import kernel_device

    run_cases(kernel_device(), found, quick=settings.quick)


def run_cases(device: KernelDevice, found: Findings, *, quick: bool) -> None:
    """Run the workload with each use of CUDA graphs."""
    with open_bench(device, quick=quick) as bench:
        arrivals = workload(bench)
        expected = alone(bench, arrivals)
        found.add_cases({f"cuda_graphs_{mode}": partial(compare, bench, arrivals, expected, mode) for mode in MODES})
        found.add_cases({"warm_up": lambda: warmed(bench), "refit": lambda: refit(bench)})
    found.answer(f"yes, bit for bit: {len(expected.pixels)} images, previews, guidance, a LoRA, cancellation")


def workload(bench: Bench) -> list[Arrival]:
    """Return images of several sizes and prompts; some are guided, use the LoRA, or are cancelled."""
    sides = bench.sides()[:4]
    requests = [
        ImageRequest(
            PROMPTS[i % len(PROMPTS)],
            sides[i % len(sides)],
            sides[0] if i % 4 == 3 else sides[i % len(sides)],
            SEED + i,
            num_inference_steps=2 + i % 7,
            negative_prompt="a blue star" if i % 5 == 2 else "",
            guidance_scale=2.5 if i % 5 == 2 else 0.0,
            lora=LORA if i % 6 == 4 else None,
            cfg_normalization=0.5 if i == 7 else 0.0,
            cfg_truncation=0.3 if i == 12 else 1.0,
        )
        for i in range(14)
    ]
    return [Arrival(request, i // 2 * 3, i // 2 * 3 + 4 if i in (5, 9) else None) for i, request in enumerate(requests)]


def alone(bench: Bench, arrivals: Sequence[Arrival]) -> Outcome:
    """Generate each image alone in numpy; also those that are cancelled on the device."""
    pipeline = host_pipeline(bench.folder, bench.plans, SLOTS)
    outcome = Outcome()
    for number, arrival in enumerate(arrivals):
        pipeline.refit(None)  # a loop expects plans without a LoRA
        only = run_workload(_loop(bench, pipeline), [replace(arrival, submit_at=0, cancel_at=None)])
        outcome.pixels[number], outcome.estimates[number] = only.pixels[0], only.estimates.get(0, [])
    return outcome


def compare(bench: Bench, arrivals: Sequence[Arrival], expected: Outcome, mode: CudaGraphs) -> Figures:
    """Run the workload on the device; every image and preview must equal the one alone."""
    with bench.pipeline(RuntimeOptions(cuda_graphs=mode, slots=SLOTS)) as pipeline:
        watch = Stopwatch()
        got = run_workload(_loop(bench, pipeline), arrivals)
        seconds = watch.seconds
    kept = {number for number, arrival in enumerate(arrivals) if arrival.cancel_at is None}
    require(kept <= got.pixels.keys(), f"images {sorted(kept - got.pixels.keys())} are missing")
    numbers = sorted(got.pixels)
    equal_images([got.pixels[n] for n in numbers], [expected.pixels[n] for n in numbers])
    previews = 0
    for number in numbers:
        pairs = list(zip(got.estimates.get(number, []), expected.estimates[number], strict=True))
        require(all(np.array_equal(one, other) for one, other in pairs), f"previews of image {number} differ")
        previews += len(pairs)
    return {
        "images_equal": len(numbers),
        "previews_equal": previews,
        "cancelled": len(arrivals) - len(numbers),
        "batches": {str(size): got.batches.count(size) for size in sorted(set(got.batches))},
        "lora_switches_ms": [1e3 * switch for switch in got.switches],
        "device_s": round(got.pass_seconds, 3),
        "seconds": round(seconds, 3),
    }


def warmed(bench: Bench) -> Figures:
    """Prepare a size; then an image guided by a prompt of another length takes no memory and no context.

    Prompts of one length share passes, which only plans with guidance by default prepare.
    """
    side = bench.sides()[0]
    request = ImageRequest(PROMPTS[0], side, side, SEED, negative_prompt=PROMPTS[2], guidance_scale=2.5)
    expected = EngineLoop(host_pipeline(bench.folder, bench.plans, SLOTS)).generate(request).pixels
    with bench.pipeline(RuntimeOptions(cuda_graphs="on", slots=SLOTS)) as pipeline:
        warm_up(pipeline, [Size(side, side)])
        contexts, calls = bench.contexts(), Counter(bench.counted.calls)
        equal_images([EngineLoop(pipeline).generate(request).pixels], [expected])
        used = bench.counted.calls - calls
        require(bench.contexts() == contexts, f"a warmed size needs contexts: {bench.contexts()}, {contexts} before")
    require(not used["begin_capture"], f"a warmed size needs {used['begin_capture']} more CUDA graphs")
    return {"contexts": contexts, "graphs_launched": used["launch"]}


def refit(bench: Bench) -> Figures:
    """Swap the LoRA in and out: the image changes as numpy's does, and comes back."""
    host = host_pipeline(bench.folder, bench.plans)
    lora = LoraRegistry(host, {LORA: bench.folder / f"{LORA}.lora"})._read(LORA)
    request = ImageRequest(PROMPTS[0], bench.sides()[0], bench.sides()[0], SEED)
    found: Figures = {"in_ms": [], "out_ms": []}
    with bench.pipeline(RuntimeOptions(cuda_graphs="on")) as pipeline:
        plain = pipeline.generate(request).pixels
        for _ in range(3):
            found["in_ms"].append(1e3 * pipeline.refit(lora))
            host.refit(lora)
            tinted = pipeline.generate(request).pixels
            equal_images([tinted], [host.generate(request).pixels])
            require(not np.array_equal(tinted, plain), "the LoRA changed nothing")
            found["out_ms"].append(1e3 * pipeline.refit(None))
            equal_images([pipeline.generate(request).pixels], [plain])
    return found | {"restored": "bit for bit"}


def run_workload(loop: EngineLoop, arrivals: Sequence[Arrival]) -> Outcome:
    """Run a workload to its end; a second thread finishes the images, as the server does."""
    outcome, threads = Outcome(), list[threading.Thread]()
    step = 0
    while step <= max(arrival.submit_at for arrival in arrivals) or not loop.is_idle:
        for number, arrival in enumerate(arrivals):
            if arrival.submit_at == step:
                loop.submit(str(number), arrival.request, PREVIEWS)
            if arrival.cancel_at == step:
                loop.cancel(str(number))
        for event in loop.step():
            match event:
                case Denoised():
                    thread = threading.Thread(target=_finish, args=(event, outcome))
                    thread.start()
                    threads.append(thread)
                case Failed():
                    raise event.error
                case Stepped(estimate=estimate) if estimate is not None:
                    outcome.estimates.setdefault(int(event.key), []).append(estimate)
                case Passed():
                    outcome.batches.append(event.batch)
                    outcome.pass_seconds += event.seconds
                case Switched():
                    outcome.switches.append(event.seconds)
        step += 1
        require(step < LONGEST, "the loop never ends")
    for thread in threads:
        thread.join()
    return outcome


def _finish(event: Denoised, outcome: Outcome) -> None:
    outcome.pixels[int(event.key)] = event.pending.finish().pixels


def _loop(bench: Bench, pipeline: Pipeline) -> EngineLoop:
    area = bench.sides()[0]
    table = BatchTable("kernels", (PassTimes(area, area, GAINING),))
    return EngineLoop(pipeline, table, LoraRegistry(pipeline, {LORA: bench.folder / f"{LORA}.lora"}))
