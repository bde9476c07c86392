"""Plan directories of z-image-nano on a fake device.

A fake plan runs ONNX Runtime over the device's bytes when its stream reaches it. An image is right only if memory,
streams, events, contexts and CUDA graphs are used correctly.
"""

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.plan import FakePlan, Kernel, load_fakes
from fakes.step_peak import STEP_BYTES, step_peak

from engine.backends.base import Bindings, Engine
from engine.backends.cuda import failure
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.tensorrt.engine import TensorRtEngine
from engine.backends.tensorrt.load import load_plans
from engine.backends.tensorrt.offload import OffloadedEngine, ResidentEngine
from engine.backends.vram import OFFLOADED
from engine.errors import DeviceError, OutOfDeviceMemory, PlanCorrupt, UnsupportedShape
from engine.options import CudaGraphs, RuntimeOptions
from engine.pipeline import Pipeline, warm_up
from engine.plan.directory import read
from engine.plan.lora import PreparedLora
from engine.plan.manifest import GraphName, Manifest
from engine.request import ImageRequest
from engine.sampling.tokenizer import PromptTokenizer
from engine.scheduler.events import Denoised
from engine.scheduler.loop import EngineLoop
from engine.scheduler.pending_image import PendingImage
from engine.size import Size


@dataclass
class Nano:
    """The plans of z-image-nano, run by ONNX Runtime."""

    directory: Path
    manifest: Manifest
    kernels: dict[GraphName, Kernel]

    def on(self, cuda: FakeCuda | None, **options: object) -> Pipeline:
        """Return a pipeline on a fake device, or on ONNX Runtime itself."""
        if cuda is None:
            return Pipeline.load(self.directory, RuntimeOptions(threads=1), verify=False)
        loaded = load_fakes(cuda, self.kernels, self.directory, self.manifest, RuntimeOptions(**options))
        return Pipeline(self.manifest, PromptTokenizer(self.directory, self.manifest.model.prompt), loaded)


@pytest.fixture(scope="module")
def nano(plan_directory: Path) -> Nano:
    manifest = read(plan_directory)

    def kernel(name: GraphName) -> Kernel:
        engine = OnnxRuntimeEngine(plan_directory / manifest.graphs[name].file, manifest.graphs[name], threads=1)

        def run(tensors: Mapping[str, np.ndarray]) -> None:
            engine.enqueue(0, {key: array.copy() if array.base is None else array for key, array in tensors.items()})

        return run

    return Nano(plan_directory, manifest, {name: kernel(name) for name in manifest.graphs})


@pytest.fixture(scope="module")
def host(plan_directory: Path) -> Pipeline:
    return Pipeline.load(plan_directory, RuntimeOptions(threads=1))


REQUESTS = [
    ImageRequest("a red circle", 96, 64, seed=1, num_inference_steps=8),
    ImageRequest("黄色背景,左上角有一个蓝色星星", 64, 96, seed=2, num_inference_steps=3),
    ImageRequest("a red circle", 96, 64, seed=3, num_inference_steps=5),
    ImageRequest("a green ring on a white background " * 5, 96, 64, seed=4, num_inference_steps=1),
]


@pytest.mark.parametrize("cuda_graphs", ["off", "on", "auto"])
@pytest.mark.parametrize("seed", range(4))
def test_device_images_equal_host_images(nano: Nano, host: Pipeline, cuda_graphs: CudaGraphs, seed: int) -> None:
    cuda = FakeCuda(seed=seed, eagerness=seed / 4)
    with nano.on(cuda, cuda_graphs=cuda_graphs) as pipeline:
        for request in (*REQUESTS, *REQUESTS[::-1]):
            assert np.array_equal(pipeline.generate(request).pixels, host.generate(request).pixels)
    assert bool(cuda.calls["launch"]) == (cuda_graphs != "off")
    assert not cuda.leaks


def start(loop: EngineLoop, request: ImageRequest) -> PendingImage:
    """Generate an image until its decoding is enqueued."""
    loop.submit("a", request)
    return next(event.pending for _ in range(20) for event in loop.step() if isinstance(event, Denoised))


@pytest.mark.parametrize("seed", [None, *range(4)])
def test_images_can_be_finished_after_later_ones_were_generated(nano: Nano, host: Pipeline, seed: int | None) -> None:
    with nano.on(None if seed is None else FakeCuda(seed=seed, eagerness=seed / 4)) as pipeline:
        loop = EngineLoop(pipeline)
        pending_images = [start(loop, request) for request in REQUESTS]
        for pending, request in zip(pending_images, REQUESTS, strict=True):
            image = pending.finish()
            assert np.array_equal(image.pixels, host.generate(request).pixels)
            assert pending.finish().pixels is image.pixels


def test_copy_of_an_image_does_not_delay_steps_of_the_next(nano: Nano) -> None:
    """The copy has its own stream: the next image's steps run even if the copy has not begun."""
    cuda = FakeCuda(eagerness=0)
    with nano.on(cuda) as pipeline:
        first = start(EngineLoop(pipeline), REQUESTS[0])
        copies = pipeline.memory._copies
        held, cuda._streams[copies] = cuda._streams[copies], deque()  # cannot run until it is put back
        assert held, "the copy is on another stream"
        steps = []
        prompt_embeds = pipeline.encode_prompt([pipeline.tokenize(REQUESTS[0].prompt)])
        noise = pipeline.noise(5, Size(96, 64))
        schedule = pipeline.schedule(REQUESTS[0])
        pipeline.denoise(prompt_embeds, noise, schedule, lambda done, _: steps.append(done))
        assert steps == list(range(1, 9))
        cuda._streams[copies].extendleft(reversed(held))
        assert first.finish().pixels.std() > 1


@pytest.mark.parametrize("seed", [None, *range(4)])
def test_batch_of_two_prompts_equals_each_alone(nano: Nano, host: Pipeline, seed: int | None) -> None:
    prompts = [REQUESTS[0].prompt, "a blue star"]
    with nano.on(None if seed is None else FakeCuda(eagerness=0, seed=seed)) as pipeline:
        schedule = pipeline.schedule(REQUESTS[0])
        noise = np.concatenate([pipeline.noise(one, Size(96, 64)) for one in (1, 9)])
        prompt_embeds = pipeline.encode_prompt([pipeline.tokenize(prompt) for prompt in prompts])
        latents = pipeline.denoise(prompt_embeds, noise, schedule)
        decoded = [pipeline.decode(latents, index) for index in range(2)]  # one buffer, and copies that may be late
        images = [each.wait() for each in decoded]
    for pixels, prompt, one in zip(images, prompts, (1, 9), strict=True):
        alone = host.generate(ImageRequest(prompt, 96, 64, one)).pixels
        assert np.abs(pixels.astype(int) - alone).max() <= 1


@pytest.mark.parametrize("cuda_graphs", ["off", "on"])
def test_step_path_allocates_nothing(nano: Nano, cuda_graphs: CudaGraphs) -> None:
    cuda = FakeCuda()
    with nano.on(cuda, cuda_graphs=cuda_graphs) as pipeline:
        request = ImageRequest("a red circle", 256, 256)
        for _ in range(2):  # the second image's decoding is captured
            pipeline.generate(request)
        before = cuda.resources
        assert step_peak(pipeline, request) < STEP_BYTES
        assert cuda.resources == before


def plans_of(pipeline: Pipeline) -> list[FakePlan]:
    plans = [engine._plan for engine in pipeline.backend.engines.values() if isinstance(engine, TensorRtEngine)]
    assert len(plans) == len(pipeline.backend.engines)
    return plans


@pytest.mark.parametrize(("cuda_graphs", "guidance"), [("off", 0.0), ("auto", 0.0), ("auto", 4.0)])
def test_warmed_up_sizes_prepare_nothing_later_in_the_pipeline_or_the_loop(
    nano: Nano, cuda_graphs: CudaGraphs, guidance: float
) -> None:
    """Prompts of every length, and with guidance: no context, no binding, no graph and no memory. Passes of both
    prompts are prepared if images are guided by default."""
    cuda = FakeCuda()
    with nano.on(cuda, cuda_graphs=cuda_graphs) as pipeline:
        model = pipeline.manifest.model
        model = replace(model, prompt=replace(model.prompt, max_tokens=64), default_guidance=guidance)
        pipeline.manifest = replace(pipeline.manifest, model=model)
        warm_up(pipeline, [Size(96, 64), Size(64, 64)])
        plans = plans_of(pipeline)
        contexts = {"prompt_encoder": 2, "denoiser": 2 * 2 * (2 if guidance else 1), "guidance": 2, "vae_decoder": 2}
        assert [len(plan.contexts) for plan in plans] == [contexts[name] for name in pipeline.backend.engines]
        assert [plan.saves for plan in plans] == [2] * len(contexts)
        settings = [context.set.total() for plan in plans for context in plan.contexts]
        passes, before = cuda.calls["context.enqueue"], cuda.resources
        loop, prompts = EngineLoop(pipeline), ("a red circle", "a green ring on a white background " * 5)
        assert {len(pipeline.tokenize(prompt).ids) > 32 for prompt in prompts} == {False, True}
        for prompt, negative in (prompts, prompts[::-1]):
            request = ImageRequest(prompt, 96, 64, seed=1, num_inference_steps=2, guidance_scale=0)
            pipeline.generate(request)
            loop.generate(request)
            loop.generate(replace(request, width=64, negative_prompt=negative, guidance_scale=2.0))
            if guidance:
                loop.generate(replace(request, negative_prompt=prompt, guidance_scale=None))
        assert [context.set.total() for plan in plans for context in plan.contexts] == settings
        assert cuda.resources == before
        assert (cuda.calls["context.enqueue"] == passes) == (cuda_graphs == "auto")  # all of it was replayed


def test_offload_loads_prompt_encoder_and_denoiser_once_per_new_prompt(
    nano: Nano, host: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    cuda, caplog.handler.level = FakeCuda(), logging.INFO
    with caplog.at_level(logging.INFO), nano.on(cuda, offload=True) as pipeline:
        loop = EngineLoop(pipeline)
        for request in (*REQUESTS, REQUESTS[-1]):
            assert np.array_equal(loop.generate(request).pixels, host.generate(request).pixels)
    assert not cuda.leaks
    loads = sum("loaded an offloaded engine" in record.message for record in caplog.records)
    assert loads == 2 * 3  # three different prompts; encoded prompts are cached


def test_offloaded_engine_whose_lora_fails_does_not_run_without_it() -> None:
    class Refuses(Engine):
        closed = 0

        def enqueue(self, _stream: int, _bindings: Bindings) -> None:
            raise AssertionError("generates without its LoRA")

        def refit(self, _lora: PreparedLora | None) -> None:
            raise PlanCorrupt("the file of base weights is missing")

        def close(self) -> None:
            Refuses.closed += 1

    engine = OffloadedEngine(Refuses, ResidentEngine())
    for attempt in range(2):
        with pytest.raises(PlanCorrupt):
            engine.enqueue(0, {})
        assert Refuses.closed == attempt + 1


def test_insufficient_memory_is_refused_before_anything_is_loaded(nano: Nano) -> None:
    cuda = FakeCuda(memory=256 << 20)
    with pytest.raises(OutOfDeviceMemory, match=r"the plans need .* GB of GPU memory, 0\.27 GB are free"):
        nano.on(cuda)
    assert not cuda.resources.total()


def test_loading_logs_the_table_of_memory(nano: Nano, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        nano.on(FakeCuda()).close()
    [table] = [record.message for record in caplog.records if record.message.startswith("GPU memory")]
    for row in ("prompt_encoder", "denoiser", "vae_decoder", "tensors between them", "needed"):
        assert row in table


def test_offloaded_plans_are_opened_one_at_a_time_before_the_others(nano: Nano) -> None:
    """Otherwise loading would take more memory than serving."""
    opened: list[FakePlan] = []

    def open_plan(name: GraphName) -> FakePlan:
        assert all(plan.closed for plan in opened) or name not in OFFLOADED
        opened.append(FakePlan(cuda, nano.manifest.graphs[name], {0: {}, 1: {}}, nano.kernels[name]))
        return opened[-1]

    cuda = FakeCuda()
    load_plans(cuda, open_plan, nano.directory, nano.manifest, RuntimeOptions(offload=True)).close()
    assert len(opened) == len(nano.manifest.graphs)


@pytest.mark.parametrize("allocations", range(7))
def test_load_that_fails_half_way_leaves_no_resources(nano: Nano, allocations: int) -> None:
    """Loading makes six allocations: tensors, four plans and the arena."""

    class Small(FakeCuda):
        def allocate(self, size: int) -> int:
            if self.calls["allocate"] == allocations:
                raise failure("cudaMalloc", "cudaErrorMemoryAllocation", (size,))
            return super().allocate(size)

    cuda = Small()
    if allocations == 6:
        nano.on(cuda).close()
    else:
        with pytest.raises(OutOfDeviceMemory):
            nano.on(cuda)
    assert not cuda.leaks


@pytest.mark.parametrize("function", ["context.enqueue", "copy", "wait", "record", "make_wait"])
def test_lost_context_raises_a_sticky_error_that_says_what_to_do(nano: Nano, function: str) -> None:
    cuda = FakeCuda()
    pipeline = nano.on(cuda)
    pipeline.generate(REQUESTS[0])
    cuda.fails[function] = "cudaErrorIllegalAddress"
    for _ in range(2):
        with pytest.raises(DeviceError, match="replace the process") as lost:
            pipeline.generate(REQUESTS[0])
        assert lost.value.sticky
    cuda.fails = dict.fromkeys(("synchronize", "free", "destroy_event", "destroy_stream"), "cudaErrorIllegalAddress")
    pipeline.close()  # must not hide the error above


def test_other_error_while_freeing_is_raised(nano: Nano) -> None:
    cuda = FakeCuda()
    pipeline = nano.on(cuda)
    cuda.fails["free"] = "cudaErrorInvalidValue"
    with pytest.raises(DeviceError, match="free: cudaErrorInvalidValue"):
        pipeline.close()


def test_transient_error_fails_only_one_image(nano: Nano, host: Pipeline) -> None:
    cuda = FakeCuda()
    with nano.on(cuda) as pipeline:
        cuda.fails["context.enqueue"] = "cudaErrorLaunchOutOfResources"
        with pytest.raises(DeviceError) as failed:
            pipeline.generate(REQUESTS[0])
        assert not failed.value.sticky
        del cuda.fails["context.enqueue"]
        assert np.array_equal(pipeline.generate(REQUESTS[0]).pixels, host.generate(REQUESTS[0]).pixels)


@pytest.mark.parametrize("cuda", [None, FakeCuda(eagerness=0)], ids=["host", "device"])
def test_another_thread_can_finish_an_image(nano: Nano, host: Pipeline, cuda: FakeCuda | None) -> None:
    with nano.on(cuda) as pipeline:
        pending, found = start(EngineLoop(pipeline), REQUESTS[0]), []
        thread = threading.Thread(target=lambda: found.append(pending.finish()))
        thread.start()
        thread.join()
        assert np.array_equal(found[0].pixels, host.generate(REQUESTS[0]).pixels)


def test_only_chosen_profiles_are_loaded(plan_directory: Path, nano: Nano) -> None:
    first = nano.manifest.profiles[0]
    with Pipeline.load(plan_directory, RuntimeOptions(threads=1, profiles=(first.name,)), verify=False) as pipeline:
        assert pipeline.manifest.profiles == (first,)
        with pytest.raises(UnsupportedShape):
            pipeline.generate(ImageRequest("a", 64, first.height.max + 16))


def test_warm_up_size_outside_the_profiles_is_refused(plan_directory: Path) -> None:
    with pytest.raises(UnsupportedShape, match="height"):
        Pipeline.load(plan_directory, RuntimeOptions(warm_up=(Size(64, 8192),)), verify=False)
