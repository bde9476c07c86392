"""The changes of policies: what "fifo" makes of the order of images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fakes.service_times import MANIFEST, ONE, scenario
from msgspec import structs

from benchmarks.simulation.policies import new_scheduler
from benchmarks.simulation.requests import prepare, sample
from benchmarks.simulation.scenario import Change, ClosedLoop, EmbeddedServer
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.mix import RequestKind
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.scheduler import Batch, Scheduler

LARGE = structs.replace(ONE, name="large", width=512, height=512)
BATCH = structs.replace(ONE, name="batch", priority="batch")
ARRIVALS = (("a", ONE), ("a", LARGE), ("b", LARGE), ("a", ONE), ("c", BATCH), ("b", ONE), ("a", LARGE), ("c", ONE))


def ends(changes: Sequence[Change]) -> list[int]:
    """Return the numbers of ARRIVALS in the order in which a device without batches ends them."""
    scheduler = new_scheduler(MANIFEST, 8, BatchTable(), changes, Scheduler)
    kinds = prepare([ONE, LARGE, BATCH], MANIFEST, 32)
    for number, (client, kind) in enumerate(ARRIVALS):
        scheduler.add(sample(str(number), kinds[kind.name], MANIFEST, float(number), client))
    found = []
    while (batch := scheduler.next(100.0)) is not None:
        assert isinstance(batch, Batch)
        scheduler.start(batch, 100.0)
        scheduler.complete(batch, [(each, each.size.area / 1e5) for each in batch.samples])
        for each in batch.samples:
            if each.done == each.steps:
                scheduler.remove(each)
                found.append(int(each.key))
    return found


def test_device_without_shares_generates_images_in_the_order_of_their_arrival() -> None:
    assert ends(["fifo"]) == list(range(len(ARRIVALS))) != ends([])


def starts(changes: Sequence[Change]) -> list[float]:
    """Return when images began, in the order of their requests, on devices that take one guided image each."""
    kinds = [structs.replace(kind, guidance_scale=4.0) for kind in (ONE, LARGE, BATCH)]
    server, load = EmbeddedServer(devices=3, slots=2), ClosedLoop(16, think=1.0, clients=4)
    given = scenario(*kinds, server=server, load=load, seconds=40.0, changes=frozenset(changes))
    records = sorted(simulate(given).records, key=lambda record: record.due)
    return [record.due + record.queue for record in records if record.queue is not None]


def test_several_devices_without_shares_begin_jobs_in_the_order_of_their_acceptance() -> None:
    found = starts(["fifo"])
    assert len(found) > 50 and found == pytest.approx(sorted(found))
    real = starts([])
    assert real != pytest.approx(sorted(real))


def outcomes(kind: RequestKind, changes: Sequence[Change]) -> Counter[str]:
    load = ClosedLoop(12, think=1.0, patience=0.5)
    given = scenario(kind, LARGE, load=load, seconds=100.0, changes=frozenset(changes))
    return Counter(record.outcome for record in simulate(given).records if record.kind == kind.name)


def test_deadline_is_checked_against_the_whole_queue_without_shares() -> None:
    urgent = structs.replace(ONE, name="urgent", deadline=6.0)
    found = outcomes(urgent, ["fifo"])
    assert found["throttled"] > 10 and found["failed"] < 0.1 * found.total()


def test_client_has_its_share_of_the_queue_also_without_shares_of_time() -> None:
    server = scenario().server
    assert isinstance(server, EmbeddedServer)
    limited = replace(server, limits=replace(server.limits, queue=8))
    load = ClosedLoop(8, think=0.0, clients=1)
    found = simulate(scenario(server=limited, load=load, warmup=0.0, changes=frozenset({"fifo"}))).figures
    assert found.throttled.answers > 0
