"""Placement of tensors, and their values on host and device in any order of execution."""

import math

import numpy as np
import pytest
from fakes.cuda import POISON, FakeCuda
from fakes.manifest import BANNER, LARGE, MANIFEST, USUAL
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.device_memory import STAGING_BUFFERS, DeviceMemory
from engine.backends.host_memory import HostMemory
from engine.backends.memory import ALIGNMENT, Memory, layout, tensor_bytes
from engine.errors import OutOfDeviceMemory
from engine.plan.shapes import dimensions

SMALL = (1, 16, 8, 8)


@given(st.dictionaries(st.text(), st.integers(0, 10_000), max_size=20))
def test_layout_aligns_tensors_without_overlap(sizes: dict[str, int]) -> None:
    offsets, total = layout(sizes)
    end = 0
    for name, size in sizes.items():
        assert offsets[name] % ALIGNMENT == 0
        assert offsets[name] >= end
        end = offsets[name] + size
    assert end <= total < end + ALIGNMENT


@pytest.mark.parametrize("profiles", [(USUAL,), (USUAL, LARGE), (BANNER,)])
def test_tensor_bytes_cover_the_largest_shape_of_every_profile(profiles: tuple) -> None:
    sizes, largest = tensor_bytes(MANIFEST, profiles), {}
    for name, graph in MANIFEST.graphs.items():
        for profile in profiles:
            bounds = dimensions(name, profile, MANIFEST.model)
            for spec in (*graph.inputs, *graph.outputs):
                shape = [d if isinstance(d, int) else bounds[d].max for d in spec.shape]
                size = math.prod(shape) * np.dtype(spec.dtype).itemsize
                largest[spec.name] = max(size, largest.get(spec.name, 0))
    assert sizes == largest


def test_fewer_profiles_need_fewer_bytes() -> None:
    assert sum(tensor_bytes(MANIFEST, (USUAL,)).values()) < sum(tensor_bytes(MANIFEST, (USUAL, LARGE)).values())


@pytest.fixture(params=["host", "device"])
def memory(request: pytest.FixtureRequest) -> Memory:
    return HostMemory(MANIFEST, (USUAL,)) if request.param == "host" else DeviceMemory(FakeCuda(), MANIFEST, (USUAL,))


def test_what_is_written_is_read(memory: Memory) -> None:
    values = np.random.default_rng(0).random(SMALL, np.float32)
    written = memory.write("latents", values)
    values_then, values[:] = values.copy(), 0  # the caller may change them at once
    assert np.array_equal(memory.read(written).wait(), values_then)


def test_same_shape_returns_the_same_view(memory: Memory) -> None:
    assert memory.view("latents", SMALL) is memory.view("latents", SMALL)
    assert memory.view("latents", SMALL) is not memory.view("latents", (2, 16, 8, 8))


def test_row_returns_one_sample(memory: Memory) -> None:
    values = np.random.default_rng(0).random((3, 16, 8, 8), np.float32)
    batch = memory.write("latents", values)
    for index in range(3):
        row = memory.row(batch, index)
        assert row.shape == SMALL
        assert np.array_equal(memory.read(row).wait()[0], values[index])


def test_timing_events_measure_device_time() -> None:
    cuda = FakeCuda()
    memory = DeviceMemory(cuda, MANIFEST, (USUAL,))
    start = memory.record_event()
    cuda.enqueue(memory.stream, lambda: None, seconds=0.25)
    end = memory.record_event()
    memory.synchronize()
    assert start.seconds_until(end) == 0.25


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(["latents", "latents_next"]), st.integers(0, 99)),
        st.tuples(st.just("pass"), st.booleans(), st.integers(0, 99)),
        st.tuples(st.just("read"), st.sampled_from(["latents", "latents_next"]), st.integers(0, 2)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.integers(0, 1 << 30), st.sampled_from([None, 0.0, 0.3, 0.9]))
def test_readbacks_are_right_for_any_order_of_streams(actions: list[tuple], seed: int, eagerness: float | None) -> None:
    """Writes, passes that add a number, and readbacks that are waited for later, compared with plain variables.

    On the host, and on devices with different eagerness.
    """
    cuda = None if eagerness is None else FakeCuda(seed=seed, eagerness=eagerness)
    memory = HostMemory(MANIFEST, (USUAL,)) if cuda is None else DeviceMemory(cuda, MANIFEST, (USUAL,))
    model = dict.fromkeys(("latents", "latents_next"), 0)
    for name in model:
        memory.write(name, np.zeros(SMALL, np.float32))
    waiting: list[tuple] = []  # at most STAGING_BUFFERS
    for action, what, number in actions:
        if action == "write":
            memory.write(what, np.full(SMALL, number, np.float32))
            model[what] = number
        elif action == "pass":
            source, target = ("latents", "latents_next") if what else ("latents_next", "latents")
            views = [memory.view(name, SMALL) for name in (source, target)]
            memory.prepare_write(views[1])
            if cuda is None:
                np.add(views[0], number, out=views[1])
            else:
                arrays = [cuda.bytes_at(view.address, view.nbytes).view(np.float32) for view in views]
                cuda.enqueue(memory.stream, lambda a=arrays, n=number: np.add(a[0], n, out=a[1]))
            model[target] = model[source] + number
        else:
            waiting.append((memory.read(memory.view(what, SMALL)), model[what]))
        while len(waiting) > (
            number % STAGING_BUFFERS if action == "read" else 0
        ):  # a write may take the buffer of a readback
            readback, expected = waiting.pop(0)
            assert (readback.wait() == expected).all()
    for readback, expected in waiting:
        assert (readback.wait() == expected).all()
    memory.close()
    assert cuda is None or not cuda.leaks


def test_unwritten_device_memory_is_not_zero() -> None:
    """The fake must not hide a tensor that was never written."""
    memory = DeviceMemory(FakeCuda(), MANIFEST, (USUAL,))
    raw = memory.read(memory.view("latents", SMALL)).wait()
    assert (raw.view(np.uint8) == POISON).all()


def test_failed_allocation_leaves_no_resources() -> None:
    cuda = FakeCuda(memory=1 << 20)
    with pytest.raises(OutOfDeviceMemory, match=r"cudaMalloc of .* GB failed: not enough GPU memory"):
        DeviceMemory(cuda, MANIFEST, (USUAL,))
    assert not cuda.leaks


def test_device_memory_allocates_nothing_after_its_constructor() -> None:
    cuda = FakeCuda()
    memory = DeviceMemory(cuda, MANIFEST, (USUAL,))
    before = cuda.resources
    for _ in range(50):
        tensor = memory.write("latents", np.zeros(SMALL, np.float32))
        memory.record_event()
        memory.prepare_write(tensor)
        memory.read(tensor).wait()
    assert cuda.resources == before
