"""A soak test: many users for minutes, with checks of every answer, of response times and of memory growth.

Each user requests images of one size, the next one as soon as the last is answered, so the number of jobs in flight per
size equals the number of its users. All sizes get equal shares of the engine, and one size is served in order of
arrival. This is a closed queueing network with one saturated station. With N users of a size, K sizes, an engine that
alone generates X images of the size per second, and a mean pause of Z seconds, the response time is N K / X - Z seconds
(the interactive response time law at the bottleneck's asymptote: Denning and Buzen, The Operational Analysis of
Queueing Network Models, Computing Surveys 10, 1978). Long pauses leave the engine unsaturated: where the law gives less
than the time of one image alone, there is no prediction.
"""

import base64
import io
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.distribution import Distribution
from benchmarks.harness.pixels import Pixels
from benchmarks.harness.rate import rate
from benchmarks.harness.server_process import Sampler, ServerProcess
from benchmarks.harness.subprocess_client import Answer, SubprocessClient
from benchmarks.overhead.traffic import PROMPTS, Case
from engine.pipeline import Pipeline

CASES = 12  # cases per size
USER_CASES = 4  # of these, cases per user
TOLERANCE = 1  # largest difference of a pixel, of 255: a batch rounds sums in another order
REPEATED = 20  # requests that are repeated with their idempotency keys at the end
ENGINE_SECONDS = 6.0  # time that the engine alone generates each size for, before and after the soak
COUNTED = ("zimage_jobs_accepted_total", "zimage_jobs_ended_total", "zimage_images_total")
MEBI = 1 << 20

Expected = Mapping[tuple[str, int], Pixels]  # (size as in a request, seed) -> image


@dataclass(frozen=True, slots=True)
class Workload:
    """The users of a soak test.

    Attributes:
        sizes: sides of the square images; users get them in rotation, one size each.
        users: number of users.
        seconds: length of the test.
        think: mean pause of a user between requests, seconds.
    """

    sizes: tuple[int, ...]
    users: int
    seconds: float
    think: float = 0.0

    @property
    def sample_interval(self) -> float:
        """Seconds between two samples of memory, which continue until the last answer."""
        return min(1.0, self.seconds / 40)

    @property
    def user_sizes(self) -> list[int]:
        """Size of each user."""
        return list(islice(cycle(self.sizes), self.users))

    def cases(self) -> dict[int, list[Case]]:
        """Return the cases by size."""
        return {size: [Case(PROMPTS[i % len(PROMPTS)], size, 100 + i) for i in range(CASES)] for size in self.sizes}

    def bodies(self) -> list[list[dict[str, Any]]]:
        """Return the request bodies that each user chooses from."""
        rng, cases = random.Random(2026), self.cases()
        return [[case.body() for case in rng.sample(cases[size], USER_CASES)] for size in self.user_sizes]


def soak(
    engines: Path, threads: int, bare: SubprocessClient, clients: SubprocessClient, workload: Workload, batching: str
) -> dict[str, Any]:
    """Run the soak test; return its figures, with every wrong or missing answer in "errors".

    Args:
        batching: the server's option.
    """
    expected = expected_images(engines, workload)
    before = engine_rates(bare, workload)
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(engines, threads, Path(folder) / "jobs.db", batching=batching) as served,
    ):
        seen = run_users(served, clients, workload)
    after = engine_rates(bare, workload)
    per_second = {size: statistics.mean((before[size], after[size])) for size in workload.sizes}
    return {
        "users": workload.users,
        "seconds": workload.seconds,
        "think_s": workload.think,
        "answers": len(seen["answers"]),
        "jobs": len({answer["job"] for answer in seen["answers"]}),
        "counted": seen["counted"],
        "errors": seen["errors"] + wrong_images(seen, expected),
        "memory": {
            name: memory_growth([sample[name] for sample in seen["memory"]], workload.sample_interval)
            for name in ("server", "worker")
        },
        "response": {
            f"{size}x{size}": response_times(seen["answers"], workload, size, per_second[size])
            for size in workload.sizes
        },
        "cpu_s": seen["cpu"],
    }


def expected_images(engines: Path, workload: Workload) -> Expected:
    """Generate each case with `Pipeline.generate`."""
    with Pipeline.load(engines) as pipeline:
        return {
            (case.body()["size"], case.seed): pipeline.generate(case.request()).pixels
            for cases in workload.cases().values()
            for case in cases
        }


def engine_rates(bare: SubprocessClient, workload: Workload) -> dict[int, float]:
    """Measure images per second of each size by the engine alone, with one image in flight per user of the size."""
    rates = {}
    for size in workload.sizes:
        count = workload.user_sizes.count(size)
        rates[size] = rate(bare.call("fill", size=size, clients=count, warm=1.0, seconds=ENGINE_SECONDS)["ended"])
    return rates


def run_users(served: ServerProcess, clients: SubprocessClient, workload: Workload) -> Answer:
    """Run the users; return their answers, the server's counters, memory and CPU time.

    Afterwards some requests are repeated with their idempotency keys, which must not generate anything.
    """
    for size in workload.sizes:  # memory that is allocated at first use is not a leak
        seconds = min(1.0, workload.seconds)
        clients.call("fill", url=served.url, size=size, clients=workload.users, warm=0.0, seconds=seconds)
    before, spent = served.settle(), served.cpu_seconds()
    with Sampler(served.memory, workload.sample_interval) as memory:
        seen = clients.call(
            "soak", url=served.url, users=workload.bodies(), seconds=workload.seconds, think=workload.think
        )
    after = served.settle()
    cpu = {name: seconds - spent[name] for name, seconds in served.cpu_seconds().items()} | {"clients": seen["cpu_s"]}
    counted = {name: after[name] - before[name] for name in COUNTED}
    errors = seen["errors"] + [
        f"{name} is {count:.0f} after {len(seen['answers'])} answers"
        for name, count in counted.items()
        if count != len(seen["answers"])
    ]
    keyed = [answer for answer in seen["answers"] if answer["is_keyed"]][-REPEATED:]
    jobs = clients.call("repeat", url=served.url, requests=keyed)["jobs"]
    if jobs != [answer["job"] for answer in keyed] or served.settle()[COUNTED[-1]] != after[COUNTED[-1]]:
        errors.append(f"of {len(keyed)} requests repeated with their keys, some were generated again")
    return seen | {"errors": errors, "counted": counted, "memory": memory.samples, "cpu": cpu}


def wrong_images(seen: Answer, expected: Expected) -> list[str]:
    """Return a line for each answer with wrong pixels, and for each job that answered two requests."""
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for data in seen["images"]]
    found, jobs = [], set()
    for answer in seen["answers"]:
        right, got = expected[answer["body"]["size"], answer["body"]["seed"]], images[answer["image"]]
        if right.shape != got.shape or np.abs(right - got).max() > TOLERANCE:
            found.append(f"{answer['id']} got another image than {answer['body']}")
        if answer["job"] in jobs:
            found.append(f"{answer['id']} was answered by the job of another request, {answer['job']}")
        jobs.add(answer["job"])
    return found


def response_times(answers: Sequence[Answer], workload: Workload, size: int, per_second: float) -> dict[str, Any]:
    """Return the response times of one size next to the prediction.

    Args:
        per_second: images of the size that the engine alone generates per second.
    """
    seconds = [answer["seconds"] for answer in answers if answer["body"]["size"] == f"{size}x{size}"]
    users, found = workload.user_sizes.count(size), Distribution.of(seconds)
    saturated = users * len(workload.sizes) / per_second - workload.think
    theory = saturated if saturated * per_second >= 1 else None
    return {
        "users": users,
        "answers": found.runs,
        "p50_s": found.p50,
        "p95_s": found.p95,
        "engine_per_s": per_second,
        "theory_s": theory,
        "p95_over_theory": None if found.p95 is None or theory is None else found.p95 / theory,
    }


def memory_growth(samples: Sequence[int], interval: float) -> dict[str, float]:
    """Return the mean MiB of the second and of the last quarter of samples, and the slope of the second half.

    Args:
        samples: resident bytes.
        interval: seconds between two samples.
    """
    mebi = [sample / MEBI for sample in samples]
    quarter, half = len(mebi) // 4, mebi[len(mebi) // 2 :]
    return {
        "second_quarter_mib": statistics.mean(mebi[quarter : 2 * quarter]),
        "last_quarter_mib": statistics.mean(mebi[-quarter:]),
        "slope_mib_per_min": statistics.linear_regression(range(len(half)), half).slope * 60 / interval,
    }


def print_soak(figures: dict[str, Any]) -> None:
    """Print the figures of a soak test."""
    counted = ", ".join(f"{name} {value:.0f}" for name, value in figures["counted"].items())
    print(
        f"{figures['users']} users, {figures['seconds']:.0f} s: {figures['answers']} answers by {figures['jobs']} jobs"
    )
    print(f"  counted by the server: {counted}; errors: {len(figures['errors'])}")
    for error in figures["errors"][:10]:
        print(f"  {error}")
    for size, row in figures["response"].items():
        p95, theory, ratio = (row[name] or float("nan") for name in ("p95_s", "theory_s", "p95_over_theory"))
        print(
            f"  {size}: p50 {row['p50_s']:.2f} s, p95 {p95:.2f} s; predicted {theory:.2f} s, p95 is {ratio:.2f} x that"
        )
    for name, row in figures["memory"].items():
        early, late, slope = row.values()
        print(f"  {name}: {early:.1f} MiB early, {late:.1f} MiB at the end, {slope:+.2f} MiB per minute", flush=True)
