"""A worker that measures batches while there is nothing to generate."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from fakes.loop import MANIFEST, FakeLoop
from fakes.worker_socket import WorkerSocket, running

from engine.errors import DeviceError, OutOfDeviceMemory
from engine.request import ImageFormat, ImageRequest
from engine.scheduler.batch_table import BatchTable, PassTimes
from server.worker import connection
from server.worker import worker as worker_module
from server.worker.idle_measurement import IdleMeasurement
from server.worker.messages import (
    Batching,
    Fatal,
    Finished,
    FromWorker,
    Generate,
    MeasuredSize,
    SkipMeasurement,
    encode_frame,
)
from server.worker.worker import Worker

TABLE = BatchTable("a fake", (PassTimes(64, 64, (1.0, 1.0, 1.0, 1.0, 1.1)), PassTimes(128, 128, (1.0, 2.0))), 1.75e9)
MEASURED = Batching(
    "measured", 10, "a fake", 1.75e9, (MeasuredSize(64, 64, 5, 5 / 1.1), MeasuredSize(128, 128, 1, 1.0))
)


@dataclass
class FakeMeasurement:
    """Passes that wait for a permit each; the one numbered `failing` raises an error."""

    passes: int = 5
    error: DeviceError | None = None
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: int = 0
    is_running: threading.Event = field(default_factory=threading.Event)

    def advance(self) -> bool:
        self.is_running.set()
        assert self.permits.acquire(timeout=20)
        self.is_running.clear()
        self.done += 1
        if self.error is not None:
            raise self.error
        return self.done < self.passes

    def table(self) -> BatchTable:
        return TABLE


@dataclass
class FakeFile:
    """The file of a table, or a plan directory that cannot be written."""

    found: BatchTable | None = None
    is_read_only: bool = False
    written: list[BatchTable] = field(default_factory=list)

    def read(self) -> BatchTable | None:
        return self.found

    def write(self, table: BatchTable) -> None:
        if self.is_read_only:
            raise OSError("cannot write it: Read-only file system")
        self.written.append(table)


@dataclass
class Measuring:
    """A worker over a socket, and what it measures and uses."""

    socket: WorkerSocket
    measurement: FakeMeasurement
    file: FakeFile
    used: list[BatchTable]

    def states(self, until: str) -> list[str]:
        """Return the states that the worker tells, up to one."""
        found = [""]
        while found[-1] != until:
            message = self.socket.receive(Batching)
            assert isinstance(message, Batching)
            found.append(message.state)
        return found[1:]


@contextmanager
def measuring(
    measurement: FakeMeasurement | None = None, file: FakeFile | None = None, table: BatchTable | None = None
) -> Iterator[Measuring]:
    measurement, file, used = measurement or FakeMeasurement(), file or FakeFile(), []
    idle = IdleMeasurement(table, measurement, file, used.append, 12)
    with running(lambda sock, abandon: Worker(FakeLoop(), MANIFEST, sock, abandon, idle)) as ours:
        yield Measuring(ours, measurement, file, used)
        measurement.permits.release(99)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "MEASURE_AFTER", 0.01)


def job(name: str) -> Generate:
    return Generate(name, ImageRequest("a cat", 64, 64, num_inference_steps=2), ImageFormat())


def test_idle_worker_measures_uses_and_writes_the_table_and_tells_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), measuring() as worker:
        assert worker.socket.receive(Batching) == Batching("waiting", 4)
        assert worker.socket.receive(Batching) == Batching("measuring", 4)
        worker.measurement.permits.release(5)
        assert worker.socket.receive(Batching) == MEASURED
        assert worker.used == worker.file.written == [TABLE]
        worker.socket.send(job("a"))
        worker.socket.receive(Finished)
    assert worker.measurement.done == 5
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "64x64 5 (4.55x), 128x128 1 (1.00x)"
    ]


def test_job_that_comes_during_a_measurement_waits_for_one_pass_and_the_rest_is_measured_later() -> None:
    with measuring() as worker:
        for number in range(4):
            assert worker.measurement.is_running.wait(20)
            worker.socket.send(job(f"job {number}"))
            while worker.socket.worker._inbox.empty():
                time.sleep(0.001)
            worker.measurement.permits.release()
            worker.socket.receive(Finished)
            assert worker.measurement.done == number + 1
            assert not worker.used
        worker.measurement.permits.release()
        assert worker.states("measured")[-2:] == ["measuring", "measured"]
    assert worker.used == [TABLE]


def test_pass_without_memory_ends_the_measurement_but_not_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    with measuring(FakeMeasurement(error=OutOfDeviceMemory("no memory is left"))) as worker:
        worker.measurement.permits.release(99)
        assert worker.states("failed") == ["waiting", "measuring", "failed"]
        for name in ("a", "b"):
            worker.socket.send(job(name))
            worker.socket.receive(Finished)
    assert worker.measurement.done == 1 and not worker.used
    (record,) = caplog.records
    assert "no memory is left" in record.getMessage()


def test_lost_device_ends_the_worker_and_the_server_knows_that_it_was_measuring() -> None:
    with measuring(FakeMeasurement(error=DeviceError("the GPU fell off the bus", sticky=True))) as worker:
        worker.measurement.permits.release()
        told = [worker.socket.receive(Batching, Fatal) for _ in range(3)]
    assert told == [Batching("waiting", 4), Batching("measuring", 4), Fatal("the GPU fell off the bus")]


def test_server_is_told_of_the_measurement_before_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would not know that the measurement has ended the process."""
    sent: list[FromWorker] = []

    def encode_slowly(message: FromWorker) -> bytes:
        time.sleep(0.05)
        sent.append(message)
        return encode_frame(message)

    monkeypatch.setattr(connection, "encode_frame", encode_slowly)
    with measuring() as worker:
        assert worker.measurement.is_running.wait(20)
        assert Batching("measuring", 4) in sent


def test_worker_that_is_told_to_skip_the_measurement_never_begins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "MEASURE_AFTER", 0.3)
    with measuring() as worker:
        worker.measurement.permits.release(99)
        worker.socket.send(SkipMeasurement())
        assert worker.states("failed") == ["waiting", "failed"]
        worker.socket.send(job("a"))
        worker.socket.receive(Finished)
    assert worker.measurement.done == 0


def test_table_stays_in_memory_where_the_plans_cannot_be_written(caplog: pytest.LogCaptureFixture) -> None:
    with measuring(file=FakeFile(is_read_only=True)) as worker:
        worker.measurement.permits.release(99)
        worker.states("measured")
        worker.socket.send(job("a"))
        worker.socket.receive(Finished)
        assert worker.used == [TABLE]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Read-only file system" in record.getMessage()


def test_table_that_another_worker_has_written_meanwhile_is_used_without_a_pass() -> None:
    with measuring(file=FakeFile(TABLE)) as worker:
        assert worker.states("measured") == ["waiting", "measuring", "measured"]
        assert (worker.used, worker.measurement.done, worker.file.written) == ([TABLE], 0, [])


def test_worker_with_a_table_measures_nothing() -> None:
    with measuring(table=TABLE) as worker:
        worker.measurement.permits.release(99)
        assert worker.socket.receive(Batching) == MEASURED
        worker.socket.send(job("a"))
        worker.socket.receive(Finished)
    assert worker.measurement.done == 0 and not worker.used
