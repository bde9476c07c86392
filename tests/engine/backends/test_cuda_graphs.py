"""Capture, replay and dropping of CUDA graphs."""

import logging

import pytest
from fakes.cuda import PASS_SECONDS, FakeCuda

from engine.backends.tensorrt.cuda_graphs import CAPTURED, PINNED_CAPTURED, Replay
from engine.errors import DeviceError
from engine.options import CudaGraphs


def drive(
    mode: CudaGraphs, passes: int, cuda: FakeCuda, captured: int = CAPTURED
) -> tuple[Replay, list[int], list[str]]:
    """Run passes. Return the replay, the passes that ran on the device, and the kind of each."""
    stream, ran, kinds = cuda.create_stream(), [], []
    replay = Replay(cuda, mode, stream, captured)
    for number in range(passes):
        before = cuda.calls.copy()
        replay.run(lambda number=number: cuda.enqueue(stream, lambda: ran.append(number), seconds=PASS_SECONDS))
        new = cuda.calls - before
        kinds.append("captured" if new["begin_capture"] else "replayed" if new["launch"] else "ordinary")
    cuda.synchronize(stream)
    return replay, ran, kinds


def test_mode_off_runs_every_pass_without_a_graph() -> None:
    _, ran, kinds = drive("off", 3, FakeCuda())
    assert (ran, kinds) == ([0, 1, 2], ["ordinary"] * 3)


def test_mode_on_captures_the_second_pass_and_replays_it() -> None:
    replay, ran, kinds = drive("on", 4, cuda := FakeCuda())
    assert kinds == ["ordinary", "captured", "replayed", "replayed"]
    assert ran == [0, 1, 1, 1]  # what was captured
    replay.clear()
    assert cuda.leaks.keys() == {"streams"}


@pytest.mark.parametrize(
    ("replay_seconds", "then"),
    [(0.5 * PASS_SECONDS, "replayed"), (0.97 * PASS_SECONDS, "replayed"), (PASS_SECONDS, "ordinary")],
)
@pytest.mark.parametrize("captured", [CAPTURED, PINNED_CAPTURED])
def test_mode_auto_keeps_a_graph_only_if_its_device_time_gains(captured: int, replay_seconds: float, then: str) -> None:
    passes = captured + 4
    replay, ran, kinds = drive("auto", passes, cuda := FakeCuda(replay_seconds=replay_seconds), captured)
    assert kinds == [*["ordinary"] * (captured - 1), "captured", "replayed", then, then, then]
    assert len(ran) == passes
    assert ("graphs" in cuda.leaks) == (then == "replayed")
    replay.clear()
    assert cuda.leaks.keys() == {"streams"}


def test_mode_auto_runs_without_a_graph_if_capture_fails_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        replay, ran, kinds = drive("auto", CAPTURED + 4, cuda := FakeCuda(uncapturable=True))
    assert ran == list(range(CAPTURED + 4))
    assert kinds == [*["ordinary"] * (CAPTURED - 1), "captured", *["ordinary"] * 4]
    assert [record.message for record in caplog.records] == [
        "running without a CUDA graph, since capture failed: cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated"
    ]
    replay.clear()
    assert cuda.leaks.keys() == {"streams"}


def test_mode_on_raises_each_time_capture_fails() -> None:
    replay, _, _ = drive("on", 1, cuda := FakeCuda(uncapturable=True))
    for _ in range(2):
        with pytest.raises(DeviceError, match="cudaErrorStreamCaptureInvalidated"):
            replay.run(lambda: cuda.enqueue(replay._stream, lambda: None))


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_failed_passes_do_not_count_towards_a_capture(mode: CudaGraphs) -> None:
    cuda = FakeCuda()
    replay = Replay(cuda, mode, cuda.create_stream())

    def fail() -> None:
        raise DeviceError("no")

    for _ in range(2 * CAPTURED):
        with pytest.raises(DeviceError, match="no"):
            replay.run(fail)
    assert not cuda.calls["begin_capture"]


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_interruption_during_capture_is_raised_though_the_capture_is_invalid(mode: CudaGraphs) -> None:
    replay, _, _ = drive(mode, {"on": 1, "auto": CAPTURED - 1}[mode], FakeCuda(uncapturable=True))
    interruptions = iter([KeyboardInterrupt()])

    def interrupt() -> None:
        for interruption in interruptions:  # only once
            raise interruption

    with pytest.raises(KeyboardInterrupt):
        replay.run(interrupt)


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_lost_context_during_capture_raises(mode: CudaGraphs) -> None:
    with pytest.raises(DeviceError, match="replace the process") as lost:
        drive(mode, CAPTURED, FakeCuda(fails={"end_capture": "cudaErrorIllegalAddress"}))
    assert lost.value.sticky


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_clear_restarts_the_count_of_passes(mode: CudaGraphs) -> None:
    replay, _, _ = drive(mode, CAPTURED + 3, cuda := FakeCuda())
    replay.clear()
    captures = cuda.calls["begin_capture"]
    stream, ran = replay._stream, []
    for number in range(CAPTURED + 3):
        replay.run(lambda number=number: cuda.enqueue(stream, lambda: ran.append(number)))
    cuda.synchronize(stream)
    assert len(ran) == CAPTURED + 3
    assert cuda.calls["begin_capture"] == captures + 1
