"""`zimage-bench http`: lost, repeated and wrong answers are noticed, and times become figures."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from fakes.processes import FAKE_SERVER

from benchmarks.cli import main
from benchmarks.harness.rate import rate
from benchmarks.harness.server_process import ServerProcess
from benchmarks.harness.subprocess_client import SubprocessClient
from benchmarks.http import overhead, throughput
from benchmarks.overhead.soak import Workload, memory_growth, response_times, run_users, wrong_images
from benchmarks.overhead.traffic import Case

SERVER = [sys.executable, *FAKE_SERVER, "0.001", "5"]
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-23-http-cpu.json"
WORKLOAD = Workload((64, 128), users=4, seconds=0.8)


class FakeEngine:
    """Generates an image in 10 ms, and 100 a second with a full queue."""

    def call(self, function: str, **_: Any) -> dict[str, Any]:
        if function == "generate":
            return {"engine_s": 0.01, "encode_s": 0.001}
        return {"ended": [i / 100 for i in range(50)], "images": 50, "cpu_s": 0.5}


class Miscounting:
    """A server whose counter of images is twice the truth."""

    def __init__(self, served: ServerProcess) -> None:
        self._served = served

    def __getattr__(self, name: str) -> Any:
        return getattr(self._served, name)

    def settle(self) -> dict[str, float]:
        found = self._served.settle()
        return found | {"zimage_images_total": 2 * found["zimage_images_total"]}


@pytest.fixture(scope="module")
def served() -> Iterator[ServerProcess]:
    with ServerProcess(Path("none"), command=SERVER) as found:
        yield found


@pytest.fixture(scope="module")
def clients() -> Iterator[SubprocessClient]:
    with SubprocessClient("benchmarks.overhead.http_clients") as found:
        yield found


@pytest.mark.timing
def test_overhead_and_throughput_follow_from_the_measured_times(
    served: ServerProcess, clients: SubprocessClient
) -> None:
    alone = overhead(served, FakeEngine(), clients, 64, pairs=3)
    assert alone["against_alone_p50_s"] == pytest.approx(alone["http_s"]["p50"] - 0.01)
    assert alone["overhead_p50_s"] == pytest.approx(alone["http_s"]["p50"] - 0.008)  # eight steps of a millisecond
    assert alone["overhead_p50_s"] > 0
    before = served.metrics()["zimage_images_total"]
    full = throughput(served, FakeEngine(), clients, 64, count=4, rounds=1, seconds=0.5)
    generated = served.metrics()["zimage_images_total"] - before
    assert full["bare_per_s"] == pytest.approx(100) and full["ratio"] == pytest.approx(full["http_per_s"] / 100)
    assert full["http_per_s"] == pytest.approx(generated / 1.5, rel=0.7)  # one second of it warms up
    assert full["cpu_s_per_image"].keys() == {"bare loop", "server", "worker", "clients"}
    assert all(seconds > 0 for seconds in full["cpu_s_per_image"].values())


def test_each_user_gets_one_right_answer_per_request(served: ServerProcess, clients: SubprocessClient) -> None:
    seen = run_users(served, clients, WORKLOAD)
    assert seen["errors"] == [] and len(seen["answers"]) >= 8
    assert {answer["body"]["size"] for answer in seen["answers"]} == {"64x64", "128x128"}
    right = {(case.body()["size"], case.seed): flat(case) for cases in WORKLOAD.cases().values() for case in cases}
    assert wrong_images(seen, right) == []
    asked = seen["answers"][0]["body"]
    for distance, wrong in ((1, 0), (2, 1)):
        altered = right | {(asked["size"], asked["seed"]): right[asked["size"], asked["seed"]] + distance}
        assert bool(wrong_images(seen, altered)) == bool(wrong)
    doubled = seen | {"answers": [*seen["answers"], seen["answers"][0]]}
    assert len(wrong_images(doubled, right)) == 1


def flat(case: Case) -> np.ndarray:
    """The image of the fake engine."""
    return np.full((case.size, case.size, 3), (case.seed, 8, len(case.prompt)), np.uint8)


def test_server_that_counts_other_images_than_its_users_is_an_error(
    served: ServerProcess, clients: SubprocessClient
) -> None:
    errors = run_users(Miscounting(served), clients, Workload((64,), users=2, seconds=0.3))["errors"]
    assert len(errors) == 1 and errors[0].startswith("zimage_images_total is ")


def test_refused_request_ends_the_measurement(served: ServerProcess, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        SubprocessClient("benchmarks.overhead.http_clients") as own,
        pytest.raises(RuntimeError, match="its error output is above"),
    ):
        own.call("fill", url=served.url, size=24, clients=2, warm=0.0, seconds=5.0)
    assert "the server answered 400: " in capfd.readouterr().err


def test_a_rate_is_a_slope() -> None:
    assert rate([3.0, 1.0, 2.0, 2.5, 1.5]) == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="1 images are too few"):
        rate([1.0])


def test_theoretical_response_time_is_that_of_one_sizes_queue() -> None:
    """Three of five users ask for this size, which gets half of the engine: 3 * 2 / 10 s, less the time to think."""
    workload = Workload((64, 128), users=5, seconds=1.0, think=0.1)
    answers = [{"seconds": 0.6, "body": {"size": "64x64"}}] * 40 + [{"seconds": 9.0, "body": {"size": "128x128"}}]
    found = response_times(answers, workload, 64, per_second=10.0)
    assert (found["users"], found["answers"]) == (3, 40)
    assert found["theory_s"] == pytest.approx(0.5) and found["p95_over_theory"] == pytest.approx(1.2)
    idle = response_times(answers, replace(workload, think=5.0), 64, per_second=10.0)
    assert (idle["theory_s"], idle["p95_over_theory"]) == (None, None), "not -4.4 s"


def test_memory_growth_is_distinguished_from_growth_at_the_start() -> None:
    mebi = 1 << 20
    grown = memory_growth([mebi * min(i, 10) for i in range(60)], interval=1.0)
    assert grown["slope_mib_per_min"] == 0 and grown["second_quarter_mib"] == grown["last_quarter_mib"] == 10
    assert memory_growth([mebi * i for i in range(75)], interval=1.0)["slope_mib_per_min"] == pytest.approx(60)


@pytest.mark.slow
def test_recorded_result_has_the_fields_of_the_command(
    engines: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.overhead.soak.ENGINE_SECONDS", 1.0)
    main([
        "http", "--engines", str(engines), "--sizes", "64", "--pairs", "2", "--clients", "4", "--rounds", "1",
        "--seconds", "1", "--users", "3", "--soak", "4",
    ])  # fmt: skip
    fresh = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert fresh["soak"]["errors"] == []
    kept = json.loads(RESULT.read_text())["figures"]
    assert fresh["64x64"].keys() == kept["64x64"].keys()
    assert fresh["soak"].keys() == kept["soak"].keys()


@pytest.mark.parametrize(("has_table", "batching"), [(True, "auto"), (False, "off")])
def test_server_measures_no_table_beside_the_engine_alone(
    has_table: bool, batching: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bare:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def call(self, function: str) -> dict[str, Any]:
            assert function == "table"
            return {"is_there": has_table}

    class Started(Exception):
        pass

    def start(*_: object, batching: str) -> None:
        raise Started(batching)

    monkeypatch.setattr("benchmarks.http.SubprocessClient", lambda *_: Bare())
    monkeypatch.setattr("benchmarks.http.ServerProcess", start)
    with pytest.raises(Started, match=batching):
        main(["http", "--engines", "none"])
