"""The part `cuda-images`: images of the kernels' graphs through the pipeline on the device, against the same in numpy.

What is driven: the arena, page-locked staging, streams and events, CUDA graphs, the contexts of an engine, warm-up.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.gpu.cuda.calls import require
from benchmarks.gpu.cuda.kernel_graphs import host_pipeline, manifest, write_directory
from benchmarks.gpu.cuda.kernel_plan import KernelDevice
from benchmarks.gpu.findings import CheckFailed, Figures, Findings, Settings
from benchmarks.harness.report import Stopwatch
from engine.array import Array
from engine.backends.cuda import Cuda
from engine.backends.tensorrt.engine import CONTEXTS
from engine.errors import NonFiniteOutput
from engine.options import CudaGraphs, RuntimeOptions
from engine.pipeline import Pipeline, warm_up
from engine.plan.manifest import Manifest
from engine.request import ImageRequest
from engine.sampling.tokenizer import PromptTokenizer
from engine.size import Size

MODES: tuple[CudaGraphs, ...] = ("off", "on", "auto")
PROMPTS = ("a red circle", "黄色背景，左上角有一个蓝色星星", "a blue star " * 20)
SEED = 7
TAKING = ("allocate", "allocate_host", "create_stream", "create_event")  # calls that take memory


def images(settings: Settings, found: Findings) -> None:
    """Run the cases on the GPU."""
    from benchmarks.gpu.cuda.nvrtc import kernel_device

    run_cases(kernel_device(), found, quick=settings.quick)


def run_cases(device: KernelDevice, found: Findings, *, quick: bool) -> None:
    """Run every case over Z-Image-Turbo's shapes or, if quick, over tiny ones."""
    with open_bench(device, quick=quick) as bench:
        cases = {f"cuda_graphs_{mode}": partial(bench.images, mode) for mode in MODES}
        found.add_cases(cases | {"batches": bench.batches, "warm_up": bench.warm_up, "not_finite": bench.not_finite})
    found.answer("yes, bit for bit: sizes and prompts in turn, batches, CUDA graphs off, on and auto, after warm-up")


class CountedCuda:
    """A `Cuda` that counts its calls."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.calls = cuda, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._cuda, name)

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            return function(*arguments)

        return call


@dataclass
class Bench:
    """A device beside numpy, over one plan directory."""

    device: KernelDevice
    counted: CountedCuda
    folder: Path
    plans: Manifest
    quick: bool

    def __post_init__(self) -> None:
        self.host = host_pipeline(self.folder, self.plans)

    @contextmanager
    def pipeline(self, options: RuntimeOptions) -> Iterator[Pipeline]:
        """Load the graphs onto the device, as `Pipeline.load` does."""
        backend = self.device.load(self.folder, self.plans, options)
        try:
            yield Pipeline(self.plans, PromptTokenizer(self.folder, self.plans.model.prompt), backend)
        finally:
            backend.close()

    def contexts(self) -> dict[str, int]:
        """Return how many contexts each plan of the last loading has."""
        return {plan.name: plan.contexts for plan in self.device.plans[-len(self.plans.graphs) :]}

    def requests(self) -> list[ImageRequest]:
        """Return requests of more sizes than an engine has contexts, each with another prompt."""
        sides = self.sides()
        shapes = [*zip(sides, sides, strict=True), (sides[0], sides[-1]), (sides[-1], sides[0]), (sides[1], sides[0])]
        return [ImageRequest(PROMPTS[i % len(PROMPTS)], w, h, SEED + i) for i, (w, h) in enumerate(shapes)]

    def sides(self) -> tuple[int, ...]:
        return (64, 80, 96, 128, 192) if self.quick else (256, 512, 768, 1024, 2048)

    def images(self, mode: CudaGraphs) -> Figures:
        """Generate every request several times, in turn and repeated, so that contexts change and graphs are used."""
        requests = self.requests()
        expected = [self.host.generate(request).pixels for request in requests]
        watch, calls = Stopwatch(), Counter(self.counted.calls)
        with self.pipeline(RuntimeOptions(cuda_graphs=mode)) as pipeline:
            require(
                not any(self.contexts().values()), f"contexts were created before their first use: {self.contexts()}"
            )
            order = [*range(len(requests)), *(i for i in range(len(requests)) for _ in range(3)), *range(len(requests))]
            taken: Counter[str] = Counter()
            steps: dict[str, float] = {}
            for count, index in enumerate(order):
                if count == len(requests):
                    taken = Counter(self.counted.calls)
                image = pipeline.generate(requests[index])
                _require_equal(image.pixels, expected[index], f"image {count}, {requests[index]}")
                side = f"{requests[index].width}x{requests[index].height}"
                steps[side] = 1e3 * image.seconds.denoiser / image.num_inference_steps
            growth = {name: self.counted.calls[name] - taken[name] for name in TAKING}
            contexts = self.contexts()
        used = self.counted.calls - calls
        require(mode == "on" or mode == "auto" or not used["launch"], "a CUDA graph was launched although they are off")
        require(mode != "on" or used["launch"] > 0, "no CUDA graph was launched")
        most = CONTEXTS * len(self.plans.profiles)
        require(max(contexts.values()) <= most, f"more than {most} contexts for a plan: {contexts}")
        if mode != "auto":  # which times graphs with events of its own
            require(not any(growth.values()), f"memory was taken while images were generated: {growth}")
        return {
            "images_equal": len(order),
            "contexts": contexts,
            "graphs_captured": used["begin_capture"],
            "graphs_launched": used["launch"],
            "seconds": round(watch.seconds, 2),
            "step_ms": steps,
        }

    def batches(self) -> Figures:
        """Denoise batches; the latents of each row must be those that it has alone, and so must its image."""
        found: Figures = {}
        side = self.sides()[1]
        request = ImageRequest(PROMPTS[0], side, side)
        size, schedule = request.size(self.plans), self.host.schedule(request)
        prompt = self.host.tokenize(request.prompt)
        with self.pipeline(RuntimeOptions(cuda_graphs="on")) as pipeline:
            for batch in (2, 4, 3):
                noise = [pipeline.noise(SEED + row, size) for row in range(batch)]
                prompt_embeds = pipeline.encode_prompt([prompt] * batch)
                latents = pipeline.denoise(prompt_embeds, np.concatenate(noise), schedule)
                values = pipeline.memory.read(latents).wait().copy()
                for row in range(batch):
                    alone = self.host.denoise(self.host.encode_prompt([prompt]), noise[row], schedule)
                    different = int((values[row : row + 1] != alone).sum())
                    require(not different, f"row {row} of {batch}: {different} latents differ from numpy's")
                    got, expected = pipeline.decode(latents, row), self.host.decode(alone)
                    _require_equal(got.wait(), expected.wait(), f"row {row} of {batch}")
                    means = float(got.mean.wait()[0]), float(expected.mean.wait()[0])
                    require(means[0] == means[1], f"row {row} of {batch}: its mean is {means[0]}, numpy's {means[1]}")
                found[f"batch_{batch}"] = "equal"
        return found

    def warm_up(self) -> Figures:
        """Prepare sizes; then their images take no memory and no context, at any prompt length, and equal numpy's."""
        sizes = [Size(side, side) for side in self.sides()[:3]]
        with self.pipeline(RuntimeOptions(cuda_graphs="on")) as pipeline:
            watch = Stopwatch()
            warm_up(pipeline, sizes)
            warmed, contexts, calls = watch.seconds, self.contexts(), Counter(self.counted.calls)
            for size, prompt in product(sizes, (*PROMPTS, "a blue star " * 200)):
                request = ImageRequest(prompt, *size, SEED)
                _require_equal(pipeline.generate(request).pixels, self.host.generate(request).pixels, f"{size}")
            used = self.counted.calls - calls
            require(self.contexts() == contexts, f"warmed sizes need contexts: {self.contexts()}, {contexts} before")
        require(not any(used[name] for name in (*TAKING, "begin_capture")), f"warmed sizes took memory: {used}")
        return {"seconds": round(warmed, 2), "contexts": contexts, "graphs_launched": used["launch"]}

    def not_finite(self) -> Figures:
        """Decode one NaN, then one Inf; each must be noticed, although the image has no place for it."""
        size = Size(self.sides()[0], self.sides()[0])
        with self.pipeline(RuntimeOptions()) as pipeline:
            for value in (np.nan, np.inf):
                noise = pipeline.noise(SEED, size)
                noise[0, 1, -1, -1] = value
                try:
                    pipeline.decode(pipeline.memory.write("latents", noise)).wait()
                except NonFiniteOutput:
                    continue
                raise CheckFailed(f"{value} among the decoder's values was not noticed")
        return {"noticed": ["NaN", "Inf"]}


@contextmanager
def open_bench(device: KernelDevice, *, quick: bool) -> Iterator[Bench]:
    """Write a plan directory for the device, and count the device's calls from here on."""
    counted = CountedCuda(device.cuda)
    device.cuda = cast(Cuda, counted)
    plans = manifest(quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(device, counted, write_directory(Path(folder), plans), plans, quick)


def _require_equal(got: Array, expected: Array, what: str) -> None:
    require(got.shape == expected.shape, f"{what}: {got.shape} instead of {expected.shape}")
    different = int(np.any(got != expected, axis=-1).sum())
    worst = int(np.abs(got.astype(int) - expected).max()) if different else 0
    require(not different, f"{what}: {different} of {got[..., 0].size} pixels differ from numpy's, by up to {worst}")


def equal_images(got: Sequence[Array], expected: Sequence[Array]) -> None:
    """Raise CheckFailed unless all images are equal."""
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        _require_equal(one, other, f"image {index}")
