"""Bindings, contexts, refits and refusals of a TensorRT engine on a fake device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fakes.cuda import FakeCuda, Misuse
from fakes.manifest import LARGE, MANIFEST, USUAL
from fakes.plan import FakeContext, FakePlan
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.device_memory import DeviceMemory
from engine.backends.memory import DeviceTensor
from engine.backends.tensorrt.cuda_graphs import CAPTURED
from engine.backends.tensorrt.engine import CONTEXTS, StreamResources, TensorRtEngine, _without_covered
from engine.errors import DeviceError, PlanCorrupt
from engine.options import CudaGraphs
from engine.plan.delta import Dense, Kronecker, LowRank
from engine.plan.lora import About, PreparedLora, Scaling
from engine.plan.manifest import RefitWeight
from engine.plan.shapes import dimensions

WEIGHTS = tuple(
    RefitWeight(name, (name,), transposed=False, exponent=0, dtype="float16", shape=(2, 3), offset=12 * index)
    for index, name in enumerate(("q", "k", "v"))
)
BASE = np.arange(18, dtype=np.float16).reshape(3, 2, 3)
GRAPH = replace(MANIFEST.graphs["denoiser"], refittable=WEIGHTS, weights_file="weights")
PROFILES = {index: dimensions("denoiser", profile, MANIFEST.model) for index, profile in enumerate((USUAL, LARGE))}
ARENA = 4096


@dataclass
class Device:
    """A denoiser on a fake device, and its tensors."""

    cuda: FakeCuda
    memory: DeviceMemory
    plan: FakePlan
    engine: TensorRtEngine
    passes: list[tuple[int, tuple[int, ...]]]  # address and shape of the latents of each pass

    def bindings(self, height: int, width: int, parity: int = 0, batch: int = 1) -> dict[str, DeviceTensor]:
        latents = (batch, 16, height // 8, width // 8)
        names = ("latents", "latents_next")
        tokens = -(-(height // 16) * (width // 16) // 32) * 32 + 32
        return {
            "latents": self.memory.view(names[parity], latents),
            "latents_next": self.memory.view(names[1 - parity], latents),
            "sigma": self.memory.view("sigma", (batch,)),
            "sigma_next": self.memory.view("sigma_next", (batch,)),
            "prompt_embeds": self.memory.view("prompt_embeds", (batch, 32, 8)),
            "rope_cos": self.memory.view("rope_cos", (tokens, 16)),
            "rope_sin": self.memory.view("rope_sin", (tokens, 16)),
        }

    def run(self, height: int, width: int, parity: int = 0, batch: int = 1) -> None:
        self.engine.enqueue(self.memory.stream, self.bindings(height, width, parity, batch))

    def settings(self) -> int:
        return sum(context.set.total() for context in self.plan.contexts)


def make(tmp_path: Path, cuda: FakeCuda, graphs: CudaGraphs = "off", activation_bytes: int = ARENA) -> Device:
    (tmp_path / "weights").write_bytes(BASE.tobytes())
    memory = DeviceMemory(cuda, MANIFEST, MANIFEST.profiles)
    passes: list[tuple[int, tuple[int, ...]]] = []

    def kernel(tensors: Mapping[str, np.ndarray]) -> None:
        passes.append((tensors["latents"].ctypes.data, tensors["latents"].shape))

    plan = FakePlan(cuda, GRAPH, PROFILES, kernel, activation_bytes)
    resources = StreamResources(cuda, memory.stream, cuda.allocate(ARENA), ARENA, graphs)
    return Device(cuda, memory, plan, TensorRtEngine(resources, plan, GRAPH, PROFILES, tmp_path), passes)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return make(tmp_path, FakeCuda())


@pytest.fixture(params=["on", "auto"])
def replaying(tmp_path: Path, request: pytest.FixtureRequest) -> Device:
    return make(tmp_path, FakeCuda(), request.param)


def used(device: Device) -> list[FakeContext]:
    return [context for context in device.plan.contexts if context.set]


def test_contexts_are_created_when_passes_need_them_and_not_beyond_the_limit(device: Device) -> None:
    assert not device.plan.contexts
    for step in range(8):
        device.run(64, 64, step % 2)
    tensors, inputs = len(GRAPH.inputs) + len(GRAPH.outputs), len(GRAPH.inputs)
    assert [dict(context.set) for context in device.plan.contexts] == [{"shape": inputs, "address": tensors}] * 2
    for size in range(2 * CONTEXTS):
        device.run(64, 64 + 16 * size)
    assert len(device.plan.contexts) == CONTEXTS
    device.run(512, 64)
    assert len(device.plan.contexts) == CONTEXTS + 1  # of the other profile


def test_another_shape_sets_only_what_changed(device: Device) -> None:
    for size in range(CONTEXTS):
        device.run(64 + 16 * size, 64)
    before = device.settings()
    device.run(64, 256)  # takes the context of the first shape
    assert device.settings() - before == len(("latents", "rope_cos", "rope_sin"))  # the addresses stay


def test_alternating_shapes_keep_contexts_and_least_recently_used_is_replaced(device: Device) -> None:
    for _ in range(3):
        for size in range(CONTEXTS):
            device.run(64, 64 + 16 * size)
    assert all(context.set["address"] == len(device.bindings(64, 64)) for context in used(device))
    device.run(64, 240)  # replaces the first shape
    before = device.settings()
    device.run(64, 64 + 16)
    assert device.settings() == before
    device.run(64, 64)
    assert device.settings() > before


def test_context_that_could_not_be_pinned_is_not_used(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DeviceError("refuses the address")

    device.engine.pin_bindings(True)
    with monkeypatch.context() as patched, pytest.raises(DeviceError, match="refuses the address"):
        patched.setattr(FakeContext, "set_address", refuse)
        device.run(64, 64)
    device.run(64, 64)
    device.memory.synchronize()
    assert len(device.passes) == 1


@pytest.mark.parametrize(("height", "batch", "profile"), [(256, 1, 0), (256, 4, 0), (272, 1, 1), (512, 1, 1)])
def test_tightest_profile_is_used(device: Device, height: int, batch: int, profile: int) -> None:
    device.run(height, 64, batch=batch)
    [context] = used(device)
    assert context.profile == profile


def test_shape_outside_every_profile_fails_an_assertion(device: Device) -> None:
    with pytest.raises(AssertionError, match="no profile covers"):
        device.run(512, 64, batch=2)


def test_another_engines_stream_fails_an_assertion(device: Device) -> None:
    with pytest.raises(AssertionError, match="belong to the stream"):
        device.engine.enqueue(device.cuda.create_stream(), device.bindings(64, 64))


def test_profile_covered_by_another_gets_no_contexts(tmp_path: Path) -> None:
    """The prompt encoder has no image dimensions, so the usual profile covers the large one."""
    engine = make(tmp_path, FakeCuda()).engine
    assert engine._recent.keys() == {0, 1}
    graph = MANIFEST.graphs["prompt_encoder"]
    bounds = {i: dimensions("prompt_encoder", profile, MANIFEST.model) for i, profile in enumerate((USUAL, LARGE))}
    assert _without_covered(graph, bounds).keys() == {0}


def test_pinned_bindings_are_specialized_and_never_replaced(device: Device) -> None:
    device.engine.pin_bindings(True)
    device.run(64, 64)
    device.engine.pin_bindings(False)
    assert [context.specialized for context in used(device)] == [True]
    for size in range(1, 3 * CONTEXTS):
        device.run(64, 64 + 16 * (size % 12))
    before = device.settings()
    device.run(64, 64)
    assert device.settings() == before
    assert sum(context.specialized for context in used(device)) == 1


def test_every_pass_runs_once_with_its_own_tensors(replaying: Device) -> None:
    """In any order of shapes; the fake would refuse a graph that was captured with another shape."""
    random, expected = np.random.default_rng(0), []
    for _ in range(100):
        height, parity = int(16 * random.integers(4, 8)), int(random.integers(2))
        latents = replaying.bindings(height, 64, parity)["latents"]
        for _ in range(random.integers(1, 2 * CAPTURED)):
            replaying.run(height, 64, parity)
            expected.append((latents.address, latents.shape))
    replaying.cuda.synchronize(replaying.memory.stream)
    assert replaying.passes == expected
    assert replaying.cuda.calls["launch"] > 50


def lora(**factors: float) -> PreparedLora:
    about = About("", {}, (Scaling(1.0, {weight.name: 0 for weight in WEIGHTS}),))
    down = np.ones((1, 3), np.float32)
    return PreparedLora(about, {name: (LowRank(down, np.full((2, 1), value)),) for name, value in factors.items()})


def refit(device: Device, lora: PreparedLora | None) -> None:
    for _ in device.engine.refit(lora):
        pass


def refitted(device: Device) -> dict[str, np.ndarray]:
    device.cuda.synchronize(device.memory.stream)
    return device.plan.refitted[-1]


def test_lora_changes_only_its_weights_and_is_restored_bit_for_bit(device: Device) -> None:
    refit(device, lora(k=2))
    assert refitted(device).keys() == {"k"}
    assert np.array_equal(refitted(device)["k"], BASE[1] + 2)
    refit(device, lora(v=3))
    assert refitted(device).keys() == {"k", "v"}
    assert np.array_equal(refitted(device)["k"], BASE[1])
    assert np.array_equal(refitted(device)["v"], BASE[2] + 3)
    refit(device, None)
    assert refitted(device).keys() == {"v"}
    assert np.array_equal(refitted(device)["v"], BASE[2])
    refit(device, None)
    assert len(device.plan.refitted) == 3


# the change of each weight at a strength of 1, in numbers that FP16 and sums of them hold exactly
CHANGES = {
    "q": LowRank(np.array([[1, 2, 4]], np.float32), np.array([[1], [-3]], np.float32)),
    "k": Kronecker(np.array([[2, 4, -8]], np.float32), np.array([[1], [3]], np.float32), np.array([1, 0], np.int32)),
    "v": Dense(lambda: np.array([[1, -1, 0.5], [0, 0.25, 1]], np.float16), np.array([4], np.float32), (2, 3)),
}
DENSE = {"q": [[1, 2, 4], [-3, -6, -12]], "k": [[6, 12, -24], [2, 4, -8]], "v": [[4, -4, 2], [0, 1, 4]]}
SCALINGS = tuple(
    Scaling(strength, {"q": 0, "k": exponent, "v": 0}) for strength, exponent in ((1.0, 0), (4.0, -1), (-2.0, 2))
)
STRENGTHS = {0.25: 0, 0.5: 0, 1.0: 0, 1.5: -1, 4.0: -1, -0.5: 2, -2.0: 2}  # with the exponent of k


@settings(max_examples=50, deadline=None)
@given(swaps=st.lists(st.none() | st.sampled_from(list(STRENGTHS)), min_size=1, max_size=8))
def test_weights_after_any_swaps_are_those_of_one_merge(
    tmp_path_factory: pytest.TempPathFactory, swaps: list[float | None]
) -> None:
    device = make(tmp_path_factory.mktemp("plans"), FakeCuda(eagerness=0), "off")
    weights = {weight.name: base.copy() for weight, base in zip(WEIGHTS, BASE, strict=True)}
    prepared = PreparedLora(About("", {}, SCALINGS), {name: (change,) for name, change in CHANGES.items()})
    for strength in [*swaps, None]:
        refit(device, None if strength is None else prepared.at(strength))
        device.cuda.synchronize(device.memory.stream)
        for refitted in device.plan.refitted:
            weights |= refitted
        for (name, change), base in zip(DENSE.items(), BASE, strict=True):
            exponent = STRENGTHS[strength] if strength is not None and name == "k" else 0
            expected = (base + (strength or 0) * np.array(change)) * 2.0**exponent
            assert np.array_equal(weights[name], expected.astype(np.float16)), (name, strength)


def test_refit_drops_captured_graphs(replaying: Device) -> None:
    for _ in range(CAPTURED + 3):
        replaying.run(64, 64)
    launched = replaying.cuda.calls["launch"]
    assert launched
    refit(replaying, lora(q=1))
    replaying.run(64, 64)
    assert replaying.cuda.calls["launch"] == launched


def test_change_of_weights_is_done_in_portions_and_abandoned_ones_stop_the_engine(device: Device) -> None:
    portions = device.engine.refit(lora(q=1, k=1, v=1))
    for _ in range(2):
        next(portions)
    with pytest.raises(PlanCorrupt, match="in no known state"):
        device.run(64, 64)
    portions.close()
    with pytest.raises(PlanCorrupt, match="in no known state"):
        device.run(64, 64)
    refit(device, None)
    assert refitted(device).keys() == {"q", "k", "v"}
    device.run(64, 64)


def test_engine_with_failed_refit_refuses_to_run_until_restored(device: Device) -> None:
    device.plan.fails_to_refit = True
    with pytest.raises(DeviceError, match="cudaErrorInvalidValue"):
        refit(device, lora(q=1))
    with pytest.raises(PlanCorrupt, match="in no known state; load the plans again"):
        device.run(64, 64)
    device.plan.fails_to_refit = False
    refit(device, None)
    assert refitted(device).keys() == {"q"}
    assert np.array_equal(refitted(device)["q"], BASE[0])
    device.run(64, 64)


@pytest.mark.parametrize("graphs", ["off", "on", "auto"])
def test_close_waits_for_running_passes_and_frees_everything(tmp_path: Path, graphs: CudaGraphs) -> None:
    device = make(tmp_path, FakeCuda(eagerness=0), graphs)
    for _ in range(CAPTURED + 3):
        device.run(64, 64)
    device.engine.close()
    assert len(device.passes) == CAPTURED + 3
    device.cuda.free(device.engine._resources.arena)
    device.memory.close()
    assert not device.cuda.leaks


# refusals of the fake; without them, the tests above would prove little


def context_of(device: Device) -> FakeContext:
    device.run(64, 64)
    return used(device)[0]


def test_fake_refuses_a_pass_without_shapes_or_addresses(device: Device) -> None:
    arena = device.engine._resources.arena
    unset = device.plan.create_context(0, (arena, ARENA), device.memory.stream, specialized=False)
    with pytest.raises(Misuse, match="the shape of latents was never set"):
        unset.enqueue(device.memory.stream)
    for name, tensor in device.bindings(64, 64).items():
        if name != "latents_next":
            unset.set_shape(name, tensor.shape)
    with pytest.raises(Misuse, match="the address of latents was never set"):
        unset.enqueue(device.memory.stream)


@pytest.mark.parametrize("shape", [(1, 16, 8, 4), (5, 16, 8, 8), (1, 16, 8, 40)])
def test_fake_refuses_shapes_outside_the_profile(device: Device, shape: tuple[int, ...]) -> None:
    with pytest.raises(Misuse, match="outside profile 0"):
        context_of(device).set_shape("latents", shape)


def test_fake_refuses_addresses_outside_allocations(device: Device) -> None:
    context, latents = context_of(device), device.bindings(64, 64)["latents"]
    with pytest.raises(Misuse, match="outside every allocation"):
        context.set_address("latents", 1 << 40)
    with pytest.raises(Misuse, match="not aligned"):
        context.set_address("latents", latents.address + 4)


def test_fake_refuses_a_pass_after_its_plan_is_closed(device: Device) -> None:
    context = context_of(device)
    device.plan.close()
    with pytest.raises(Misuse, match="whose plan was closed"):
        context.enqueue(device.memory.stream)


def test_fake_refuses_another_stream_and_a_graph_of_other_shapes(device: Device) -> None:
    context, cuda, stream = context_of(device), device.cuda, device.memory.stream
    with pytest.raises(Misuse, match="stream of another engine"):
        context.enqueue(cuda.create_stream())
    cuda.begin_capture(stream)
    context.enqueue(stream)
    graph = cuda.end_capture(stream)
    cuda.launch(graph, stream)
    context.set_shape("sigma", (1,))
    with pytest.raises(Misuse, match="has had other shapes since"):
        cuda.launch(graph, stream)


def test_fake_refuses_to_wait_or_allocate_during_capture(device: Device) -> None:
    device.cuda.begin_capture(device.memory.stream)
    for misuse in (lambda: device.cuda.allocate(1), lambda: device.cuda.synchronize(device.memory.stream)):
        with pytest.raises(Misuse, match="while a graph is captured"):
            misuse()
