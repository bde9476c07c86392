"""The parts `cuda-memory` and `cuda-lost`: memory planned, refused, offloaded and freed; a context that is lost."""

import os
from dataclasses import replace

from benchmarks.gpu.cuda.calls import require
from benchmarks.gpu.cuda.images import PROMPTS, SEED, Bench, equal_images, open_bench
from benchmarks.gpu.cuda.kernel_plan import KernelDevice
from benchmarks.gpu.findings import CheckFailed, Figures, Findings, Settings
from engine.backends.vram import RESERVE, VramPlan
from engine.errors import DeviceError, OutOfDeviceMemory
from engine.options import RuntimeOptions
from engine.request import ImageRequest
from engine.scheduler.loop import EngineLoop

SLACK = 64 << 20  # bytes that CUDA may keep for itself: kernels, graphs, event pools


def memory(settings: Settings, found: Findings) -> None:
    """Run the cases on the GPU."""
    from benchmarks.gpu.cuda.nvrtc import kernel_device

    run_memory(kernel_device(), found, quick=settings.quick)


def lost(settings: Settings, found: Findings) -> None:
    """Lose the context of this process on the GPU."""
    from benchmarks.gpu.cuda.nvrtc import kernel_device

    run_lost(kernel_device(), found, quick=settings.quick)


def run_memory(device: KernelDevice, found: Findings, *, quick: bool) -> None:
    """Run every case about memory."""
    with open_bench(device, quick=quick) as bench:
        cases = _Cases(bench)
        found.add_cases(
            {"planned": cases.planned, "freed": cases.freed, "refused": cases.refused, "offloaded": cases.offloaded}
        )
    found.answer("yes: as planned, refused with a table, offloaded with equal images, and all of it freed")


def run_lost(device: KernelDevice, found: Findings, *, quick: bool) -> None:
    """Lose the context while a loop runs: the next call raises a sticky error, and closing does not raise or hang."""
    with open_bench(device, quick=quick) as bench, bench.pipeline(RuntimeOptions(slots=2)) as pipeline:
        side = bench.sides()[0]
        loop = EngineLoop(pipeline)
        loop.generate(ImageRequest(PROMPTS[0], side, side, SEED))
        device.lose_context(pipeline.memory.stream)
        try:
            loop.generate(ImageRequest(PROMPTS[1], side, side, SEED))
        except DeviceError as error:
            found.add(error=str(error), sticky=error.sticky)
            require(error.sticky, f"the error does not say that the context is lost: {error}")
        else:
            raise CheckFailed("an image was generated in a lost context")
        try:
            device.cuda.require_context()
        except DeviceError as error:
            require(error.sticky, f"not counted as a lost context: {error}")
        else:
            raise CheckFailed("require_context finds nothing wrong")
    found.answer("yes: the error is sticky and closing ends")


class _Cases:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        profiles = range(len(bench.plans.profiles))
        self._plan = VramPlan.of(bench.folder, bench.plans, profiles, offload=False, slots=2)

    def planned(self) -> Figures:
        """Loading takes no more than the VRAM plan says."""
        bench, plan = self._bench, self._plan
        before = self._free()
        with bench.pipeline(RuntimeOptions()) as pipeline:
            loaded = before - self._free()
            pipeline.generate(ImageRequest(PROMPTS[0], bench.sides()[-1], bench.sides()[-1], SEED))
            generated = before - self._free()
        figures = {"planned": plan.needed - RESERVE, "loaded": loaded, "after_an_image": generated}
        limit = plan.needed - RESERVE + SLACK
        require(generated <= limit, f"generating took {generated} bytes, the plan says {plan.needed - RESERVE}")
        return {f"{name}_mb": size / 1e6 for name, size in figures.items()}

    def freed(self) -> Figures:
        """Loading and closing again and again keeps no memory."""
        left = []
        before = self._free()
        for _ in range(4):
            with self._bench.pipeline(RuntimeOptions(cuda_graphs="on")) as pipeline:
                pipeline.generate(ImageRequest(PROMPTS[0], self._bench.sides()[0], self._bench.sides()[0], SEED))
            left.append(before - self._free())
        require(left[-1] - left[0] <= self._plan.needed // 2 - RESERVE // 2, f"each load keeps memory: {left}")
        return {"left_mb": [size / 1e6 for size in left]}

    def refused(self) -> Figures:
        """Plans larger than the GPU are refused before anything is loaded."""
        bench = self._bench
        file = bench.folder / bench.plans.graphs["denoiser"].file
        size, before = file.stat().st_size, self._free()
        os.truncate(file, 2 * bench.device.cuda.memory_info()[1])  # takes no disk space
        try:
            with bench.pipeline(RuntimeOptions()):
                raise CheckFailed("plans of twice the GPU's memory were loaded")
        except OutOfDeviceMemory as error:
            words = str(error)
        finally:
            os.truncate(file, size)
        require(before - self._free() <= SLACK, "a refused load took memory")
        return {"error": words.splitlines()[0]}

    def offloaded(self) -> Figures:
        """With one of prompt encoder and denoiser in memory at a time, images are the same."""
        bench, opened = self._bench, len(self._bench.device.plans)
        requests = [ImageRequest(prompt, bench.sides()[0], bench.sides()[1], SEED) for prompt in PROMPTS]
        with bench.pipeline(RuntimeOptions(offload=True)) as pipeline:
            got = [pipeline.generate(request).pixels for request in requests]
        equal_images(got, [bench.host.generate(replace(request)).pixels for request in requests])
        return {"images_equal": len(got), "plans_opened": len(bench.device.plans) - opened}

    def _free(self) -> int:
        return self._bench.device.cuda.memory_info()[0]
