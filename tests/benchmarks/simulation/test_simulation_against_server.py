"""Predictions of the simulated server against the real one, with the stand-in engine whose passes sleep."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx
import pytest
from fakes.service_times import MANIFEST, FakeTimes, scenario

from benchmarks.fleet.deployment import Setup, embedded
from benchmarks.fleet.plans import write_plans
from benchmarks.simulation.scenario import ClosedLoop, Costs, EmbeddedServer
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.mix import RequestKind
from engine.scheduler.batch_table import BatchTable, PassTimes

USERS, SECONDS, WARMUP = 10, 10.0, 2.0
PASS = (0.1, 0.11, 0.12, 0.13)  # seconds by batch
OVERHEAD = 0.001  # seconds of a pass that is not sleep
KEY = "0" * 32
IMAGE = RequestKind(name="image", width=256, height=256, steps=4)


def measured(url: str) -> tuple[float, float]:
    """Return images per second and the median latency of users who do not think."""
    ended, latencies, lock, began = [], [], threading.Lock(), time.monotonic()

    def user(number: int) -> None:
        body = {"size": "256x256", "num_inference_steps": 4, "prompt": f"user {number}"}
        with httpx.Client(base_url=url, timeout=60, headers={"authorization": f"Bearer {KEY}"}) as client:
            while (sent := time.monotonic() - began) < SECONDS:
                assert client.post("/v1/images/generations", json=body).status_code == 200
                now = time.monotonic() - began
                with lock:
                    ended.append(now)
                    if sent >= WARMUP:
                        latencies.append(now - sent)

    with ThreadPoolExecutor(USERS) as threads:
        list(threads.map(user, range(USERS)))
    return sum(WARMUP <= at < SECONDS for at in ended) / (SECONDS - WARMUP), median(latencies)


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("workers", [1, 2])
def test_prediction_is_within_a_tenth_of_the_real_server(tmp_path: Path, workers: int) -> None:
    times = PassTimes(256, 256, PASS)
    with ExitStack() as owned:
        plans = write_plans(tmp_path / "plans", [times])
        url = owned.enter_context(embedded(Setup(plans, tmp_path, [KEY]), workers)).urls[0]
        rate, latency = measured(url)
    given = scenario(
        IMAGE,
        server=EmbeddedServer(devices=workers, table=BatchTable("stand-in", (times,))),
        load=ClosedLoop(USERS, think=0.0, clients=1),
        manifest=MANIFEST,
        times=FakeTimes(tuple(seconds + OVERHEAD for seconds in PASS)),
        costs=Costs(),
        seconds=60.0,
    )
    predicted = simulate(given).figures
    assert predicted.achieved_per_s == pytest.approx(rate, rel=0.1)
    assert predicted.latency_s.p50 == pytest.approx(latency, rel=0.1)
    wrong = simulate(replace(given, changes=frozenset({"no-batch"}))).figures
    assert wrong.achieved_per_s != pytest.approx(rate, rel=0.1)
