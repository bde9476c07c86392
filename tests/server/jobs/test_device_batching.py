"""The images that share passes on a device: what its worker tells, and what the server makes of it."""

import json
from dataclasses import replace

import msgspec
import pytest
from fakes.hosts import device, worker
from fakes.worker_link import FakeLink, play

from server.api.schemas import DeviceBatching
from server.jobs.embedded import EmbeddedJobs
from server.jobs.storage.fleet.worker_info import WorkerInfo
from server.worker.messages import Batching, BatchingState, MeasuredSize, Ready, SkipMeasurement

MEASURED = Batching("measured", 8, "NVIDIA L4", 1.75e9, (MeasuredSize(512, 256, 4, 1.23456),))


def skips(link: FakeLink) -> int:
    return sum(isinstance(message, SkipMeasurement) for message in link.sent)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("waiting", "measuring"), True),
        (("waiting", "measuring", "waiting"), False),
        (("waiting", "measuring", "measured"), False),
        ((), False),
    ],
)
def test_workers_after_one_that_died_while_it_measured_do_not_measure(
    states: tuple[BatchingState, ...], expected: bool
) -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        (queue,) = jobs.worker_queue.queues
        queue.on_message(Ready(1.0))
        for state in states:
            queue.on_message(Batching(state))
        assert skips(link) == 0
        for deaths in (1, 2):
            queue.on_worker_lost("it ended with status -9")
            assert jobs.devices()[0].batching == Batching("none")
            queue.on_message(Ready(1.0))
            assert skips(link) == (deaths if expected else 0)

    play(story)


def test_measured_table_gives_the_device_more_room_at_once() -> None:
    async def story(jobs: EmbeddedJobs, _: FakeLink) -> None:
        (queue,) = jobs.worker_queue.queues
        told: list[int] = []
        jobs.worker_queue.on_room = lambda: told.append(queue.room)
        queue.on_message(Ready(1.0, window=4))
        queue.on_message(Batching("waiting", 4))
        queue.on_message(MEASURED)
        assert told == [4, 8]
        assert jobs.devices()[0].batching == MEASURED

    play(story)


def test_metric_tells_whether_a_device_has_a_table() -> None:
    async def story(jobs: EmbeddedJobs, _: FakeLink) -> None:
        (queue,) = jobs.worker_queue.queues
        for message, value in ((Batching("measuring"), 0), (MEASURED, 1)):
            queue.on_message(message)
            assert f'zimage_batching_measured{{device="cpu"}} {value}.0' in jobs.metrics.text().decode()

    play(story)


def test_model_info_describes_the_table_of_each_device_and_host() -> None:
    described = DeviceBatching.of(replace(device("cuda:1"), host="gpu1", batching=MEASURED)).model_dump()
    assert described == {
        "device": "cuda:1",
        "host": "gpu1",
        "state": "measured",
        "machine": "NVIDIA L4",
        "measured": 1.75e9,
        "sizes": [{"size": "512x256", "best_batch": 4, "speedup": 1.235}],
    }
    waiting = DeviceBatching.of(replace(device("cpu"), batching=Batching("waiting"))).model_dump()
    assert waiting | {"sizes": None} == {
        "device": "cpu",
        "host": None,
        "state": "waiting",
        "machine": None,
        "measured": None,
        "sizes": None,
    }


def test_hosts_of_an_older_version_are_read_without_their_batching() -> None:
    info = worker(devices=(replace(device(), batching=MEASURED),))
    encoded = msgspec.json.encode(info)
    assert msgspec.json.decode(encoded, type=WorkerInfo) == info
    old = json.loads(encoded)
    del old["devices"][0]["batching"]
    assert msgspec.json.decode(json.dumps(old), type=WorkerInfo).devices == (device(),)
