"""Devices that --devices asks for, and the environment of each worker."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.processes import PYTHONPATH, ROOT

from engine.backends import cuda
from engine.errors import BackendUnavailable
from engine.options import RuntimeOptions
from engine.scheduler.batch_table import BatchTable, PassTimes
from server.errors import WorkerStartFailed
from server.worker import devices
from server.worker.devices import VISIBLE, Device, RequestedDevices, default_device
from server.worker.idle_measurement import window
from server.worker.supervisors import Supervisors, WorkerCommand, worker_commands


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be all, GPUs such as 0,1, or cpu:N; got ''"),
        ("gpu", "must be all"),
        ("0,", "must be all"),
        ("-1", "must be all"),
        ("0,1,0", "must name each GPU once"),
        ("cpu", "must be all"),
        ("cpu:", "cpu:N must have an N from 1 to 64"),
        ("cpu:0", "cpu:N must have an N from 1 to 64"),
        ("cpu:65", "cpu:N must have an N from 1 to 64"),
        ("cpu:२", "cpu:N must have an N from 1 to 64"),
        ("all:2", "must be all"),
        ("0,cpu:1", "must be all"),
    ],
)
def test_other_texts_are_refused_with_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RequestedDevices.parse(text)


@pytest.mark.parametrize(
    ("visible", "text", "expected"),
    [
        (None, "0,2", {"cuda:0": "0", "cuda:2": "2"}),
        ("4,5,6", "0,2", {"cuda:0": "4", "cuda:2": "6"}),
        ("GPU-ab,MIG-cd", "1", {"cuda:1": "MIG-cd"}),
        ("4,5", "GPU-ab", {"cuda:GPU-ab": "GPU-ab"}),
        (None, "all", {"cuda:0": "0", "cuda:1": "1"}),
        ("MIG-cd, MIG-ef", "all", {"cuda:0": "MIG-cd", "cuda:1": "MIG-ef"}),
    ],
)
def test_each_worker_sees_one_gpu_of_those_that_the_server_sees(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, text: str, expected: dict[str, str]
) -> None:
    monkeypatch.setattr(devices, "_count_gpus", lambda: 2)
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    found = RequestedDevices.parse(text).devices("tensorrt")
    assert {device.name: device.environment[VISIBLE] for device in found} == expected


def test_devices_that_the_plans_or_the_machine_do_not_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "4,5")
    with pytest.raises(BackendUnavailable, match=r"there is no GPU 2; CUDA_VISIBLE_DEVICES shows 2 \(4,5\)"):
        RequestedDevices.parse("2").devices("rtx")
    with pytest.raises(BackendUnavailable, match="use --devices cpu:N"):
        RequestedDevices.parse("all").devices("onnx")
    with pytest.raises(BackendUnavailable, match="needs plans for the CPU"):
        RequestedDevices.parse("cpu:2").devices("tensorrt")


def test_without_devices_there_is_one_with_nothing_changed() -> None:
    assert default_device("onnx") == Device("cpu") and default_device("rtx") == Device("cuda")


@pytest.mark.parametrize(
    ("cpulists", "text", "threads", "expected"),
    [
        (["0-7"], "cpu:1", 0, [(8, ())]),
        (["0-7"], "cpu:3", 0, [(2, ())] * 3),
        (["0-7"], "cpu:2", 3, [(3, ())] * 2),
        ([], "cpu:2", 0, [(4, ())] * 2),
        (["0-3", "4-7", ""], "cpu:2", 0, [(4, (0, 1, 2, 3)), (4, (4, 5, 6, 7))]),
        (["0,2,4,6", "1,3,5,7"], "cpu:4", 0, [(2, (0, 2, 4, 6))] * 2 + [(2, (1, 3, 5, 7))] * 2),
        (["0-3", "4-7"], "cpu:1", 0, [(8, ())]),
        (["0-3", "4-7"], "cpu:16", 0, [(1, (0, 1, 2, 3))] * 8 + [(1, (4, 5, 6, 7))] * 8),
        (["0-3,8-11", "4-7,12-15"], "cpu:2", 0, [(4, (0, 1, 2, 3)), (4, (4, 5, 6, 7))]),  # 8 to 15: not this process's
    ],
)
def test_cpu_workers_share_the_cores_and_stay_on_a_numa_node(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cpulists: list[str],
    text: str,
    threads: int,
    expected: list[tuple[int, tuple[int, ...]]],
) -> None:
    for number, cpus in enumerate(cpulists):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(f"{cpus}\n")
    monkeypatch.setattr(devices, "NODES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    found = RequestedDevices.parse(text).devices("onnx", threads)
    assert [device.name for device in found] == [f"cpu:{index}" for index in range(len(expected))]
    assert [(device.threads, device.cpus) for device in found] == expected


def test_commands_carry_the_threads_and_cpus_of_their_device() -> None:
    options = RuntimeOptions(threads=5)
    two = [Device("cpu:0", threads=1, cpus=(0,)), Device("cuda:1", {VISIBLE: "1"})]
    commands = worker_commands(Path("plans"), options, two, "text", "info")
    decoded = [RuntimeOptions.decode(each.command[-4]) for each in commands]
    assert [(each.threads, each.cpus) for each in decoded] == [(1, (0,)), (5, ())]
    assert [each.command[-1] for each in commands] == ["cpu:0", "cuda:1"]
    (alone,) = worker_commands(Path("plans"), options, [Device("cpu")], "text", "info")
    assert alone.command[-1] == "", "one worker is called the worker in log lines"


def test_worker_keeps_to_its_cpus(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    code = (
        "import os, socket, sys; from server.worker.process import main; ours, theirs = socket.socketpair(); "
        "main([sys.argv[1], sys.argv[2], 'text', 'error', '', str(theirs.detach())]); print(os.sched_getaffinity(0))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), RuntimeOptions(cpus=(cpu,)).encode()]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": PYTHONPATH}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"{{{cpu}}}\n"


@pytest.mark.parametrize(
    ("seconds", "slots", "expected"),
    [((1.0,), 12, 4), ((1.0, 1.1, 1.2), 12, 6), (tuple(1 + 0.01 * n for n in range(8)), 12, 12), ((1.0,), 2, 2)],
)
def test_window_is_two_of_the_largest_batches_that_gain(seconds: tuple[float, ...], slots: int, expected: int) -> None:
    table = BatchTable("", (PassTimes(64, 64, (1.0,)), PassTimes(128, 128, seconds)))
    assert window(table, slots) == expected
    assert window(BatchTable(), 12) == 4


class Silent:
    """A listener that ignores everything."""

    def on_message(self, _: object) -> None: ...

    def on_worker_ready(self) -> None: ...

    def on_worker_lost(self, _: str) -> None: ...


FAILS = """
import os, socket, sys
from server.worker.messages import StartFailed, encode_frame
sock = socket.socket(fileno=int(sys.argv[1]))
sock.sendall(encode_frame(StartFailed(os.environ["CUDA_VISIBLE_DEVICES"] + os.environ.get("OTHER", ""))))
"""


def test_workers_have_their_environment_and_all_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", " and the server's own")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    commands = [
        WorkerCommand(f"cuda:{index}", [sys.executable, "-c", FAILS], {VISIBLE: gpu}) for index, gpu in enumerate("775")
    ]

    async def run() -> None:
        supervisors = Supervisors(commands, lambda _: Silent())
        try:
            await supervisors.start()
        finally:
            await supervisors.stop()

    expected = "cuda:0, cuda:1: 7 and the server's own; cuda:2: 5 and the server's own"
    with pytest.raises(WorkerStartFailed, match=expected):
        asyncio.run(run())


@pytest.mark.parametrize(("status", "expected"), [("cudaSuccess", 3), ("cudaErrorNoDevice", "cudaErrorNoDevice")])
def test_gpus_are_counted_without_a_context(monkeypatch: pytest.MonkeyPatch, status: str, expected: int | str) -> None:
    runtime = SimpleNamespace(cudaGetDeviceCount=lambda: (SimpleNamespace(name=status), 3))
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    if isinstance(expected, int):
        assert cuda.count_devices() == expected
    else:
        with pytest.raises(BackendUnavailable, match=expected):
            cuda.count_devices()


def test_reason_for_no_gpus_comes_from_the_process_that_counts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "count.py").write_text("import sys; print('a warning', file=sys.stderr); sys.exit('no driver')")
    monkeypatch.setattr(devices, "module_command", lambda _: [sys.executable, str(tmp_path / "count.py")])
    with pytest.raises(BackendUnavailable, match=r"^--devices all: no driver$"):
        RequestedDevices.parse("all").devices("tensorrt")
