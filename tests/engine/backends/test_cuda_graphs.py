"""When a pass is captured, replayed, and given up."""

import logging

import pytest
from fakes.cuda import PASS_SECONDS, FakeCuda

from engine.backends.tensorrt.cuda_graphs import Replay
from engine.errors import DeviceError
from engine.options import CudaGraphs


def drive(mode: CudaGraphs, passes: int, cuda: FakeCuda) -> tuple[Replay, list[int], list[str]]:
    """Runs passes; what ran on the device, and how each got there."""
    stream, ran, ways = cuda.create_stream(), [], []
    replay = Replay(cuda, mode, stream)
    for number in range(passes):
        before = cuda.calls.copy()
        replay.run(lambda number=number: cuda.enqueue(stream, lambda: ran.append(number), seconds=PASS_SECONDS))
        new = cuda.calls - before
        ways.append("captured" if new["begin_capture"] else "replayed" if new["launch"] else "ordinary")
    cuda.synchronize(stream)
    return replay, ran, ways


def test_off_is_off() -> None:
    _, ran, ways = drive("off", 3, FakeCuda())
    assert (ran, ways) == ([0, 1, 2], ["ordinary"] * 3)


def test_on_captures_the_second_pass_and_replays_it() -> None:
    replay, ran, ways = drive("on", 4, cuda := FakeCuda())
    assert ways == ["ordinary", "captured", "replayed", "replayed"]
    assert ran == [0, 1, 1, 1]  # what was captured
    replay.clear()
    assert cuda.leaks.keys() == {"streams"}


@pytest.mark.parametrize(
    ("replay_seconds", "then"),
    [(0.5 * PASS_SECONDS, "replayed"), (0.97 * PASS_SECONDS, "replayed"), (PASS_SECONDS, "ordinary")],
)
def test_auto_keeps_a_graph_that_gains_on_the_device_s_own_clock(replay_seconds: float, then: str) -> None:
    replay, ran, ways = drive("auto", 9, cuda := FakeCuda(replay_seconds=replay_seconds))
    assert ways == [*["ordinary"] * 4, "captured", "replayed", then, then, then]
    assert len(ran) == 9
    assert ("graphs" in cuda.leaks) == (then == "replayed")
    replay.clear()
    assert cuda.leaks.keys() == {"streams"}


def test_what_cannot_be_captured_runs_as_before_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        replay, ran, ways = drive("auto", 9, cuda := FakeCuda(uncapturable=True))
    assert ran == list(range(9))
    assert ways == [*["ordinary"] * 4, "captured", *["ordinary"] * 4]
    assert [record.message for record in caplog.records] == [
        "running without a CUDA graph, which cannot be captured: cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated"
    ]
    replay.clear()
    assert cuda.leaks.keys() == {"streams"}


def test_on_says_each_time_when_it_cannot() -> None:
    replay, _, _ = drive("on", 1, cuda := FakeCuda(uncapturable=True))
    for _ in range(2):
        with pytest.raises(DeviceError, match="cudaErrorStreamCaptureInvalidated"):
            replay.run(lambda: cuda.enqueue(replay._stream, lambda: None))


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_pass_that_failed_does_not_count(mode: CudaGraphs) -> None:
    cuda = FakeCuda()
    replay = Replay(cuda, mode, cuda.create_stream())

    def fail() -> None:
        raise DeviceError("no")

    for _ in range(9):
        with pytest.raises(DeviceError, match="no"):
            replay.run(fail)
    assert not cuda.calls["begin_capture"]


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_lost_context_is_no_reason_to_go_on(mode: CudaGraphs) -> None:
    with pytest.raises(DeviceError, match="replace the process") as lost:
        drive(mode, 5, FakeCuda(fails={"end_capture": "cudaErrorIllegalAddress"}))
    assert lost.value.sticky


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_after_other_bindings_everything_begins_anew(mode: CudaGraphs) -> None:
    replay, _, _ = drive(mode, 8, cuda := FakeCuda())
    replay.clear()
    captures = cuda.calls["begin_capture"]
    stream, ran = replay._stream, []
    for number in range(8):
        replay.run(lambda number=number: cuda.enqueue(stream, lambda: ran.append(number)))
    cuda.synchronize(stream)
    assert len(ran) == 8
    assert cuda.calls["begin_capture"] == captures + 1
