"""Many users for minutes: whether all of them are answered, once and rightly, in time, and in memory that stays flat.

Each user draws pictures of one size and asks again when it is answered, so every size has as many jobs under way as it
has users. Sizes share the engine alike, and within a size first come is first served: with N users of a size, of which
the engine alone draws X a second, and K sizes, a closed queueing network with one saturated station answers after
N K / X - Z seconds; Z is the time that a user thinks (the interactive response time law at the bottleneck's asymptote:
Denning and Buzen, The Operational Analysis of Queueing Network Models, Computing Surveys 10, 1978). Users who think for
longer do not saturate it: where that is less than a picture alone takes, there is no theory here.
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
from benchmarks.harness.subprocess_client import Answer, Companion
from benchmarks.load.served import Sampler, Served
from benchmarks.load.traffic import PROMPTS, Case, rate
from engine.pipeline import Pipeline

CASES = 12  # of each size
OWN = 4  # of those, each user's
TOLERANCE = 1  # of 255: in a batch, sums are rounded in another order
REPEATED = 20  # keys that come again at the end
SERVICE_SECONDS = 6.0  # for which the engine alone draws each size, before and after
COUNTED = ("zimage_jobs_accepted_total", "zimage_jobs_ended_total", "zimage_pictures_total")
MEBI = 1 << 20

Right = Mapping[tuple[str, int], Pixels]  # pictures by size, as requests name it, and seed


@dataclass(frozen=True, slots=True)
class Crowd:
    """Users, and how they ask. `sizes`: of which they have one each, in turn; `think`: mean seconds."""

    sizes: tuple[int, ...]
    users: int
    seconds: float
    think: float = 0.0

    @property
    def sample_every(self) -> float:
        """Seconds between two looks at memory, which go on until the last answer."""
        return min(1.0, self.seconds / 40)

    @property
    def of_user(self) -> list[int]:
        """Each user's size."""
        return list(islice(cycle(self.sizes), self.users))

    def cases(self) -> dict[int, list[Case]]:
        """By size."""
        return {size: [Case(PROMPTS[i % len(PROMPTS)], size, 100 + i) for i in range(CASES)] for size in self.sizes}

    def bodies(self) -> list[list[dict[str, Any]]]:
        """What each user asks for, again and again."""
        chance, cases = random.Random(2026), self.cases()
        return [[case.body() for case in chance.sample(cases[size], OWN)] for size in self.of_user]


def soak(engines: Path, threads: int, bare: Companion, clients: Companion, crowd: Crowd) -> dict[str, Any]:
    """All figures; what is wrong with answers is in "errors"."""
    right = draw_alone(engines, crowd)
    before = services(bare, crowd)
    with tempfile.TemporaryDirectory() as folder, Served(engines, threads, Path(folder) / "jobs.db") as served:
        seen = crowded(served, clients, crowd)
    after = services(bare, crowd)
    per_second = {size: statistics.mean((before[size], after[size])) for size in crowd.sizes}
    return {
        "users": crowd.users,
        "seconds": crowd.seconds,
        "think_s": crowd.think,
        "answers": len(seen["answers"]),
        "jobs": len({answer["job"] for answer in seen["answers"]}),
        "counted": seen["counted"],
        "errors": seen["errors"] + wrong_pictures(seen, right),
        "memory": {
            name: flatness([sample[name] for sample in seen["memory"]], crowd.sample_every)
            for name in ("server", "worker")
        },
        "response": {
            f"{size}x{size}": response(seen["answers"], crowd, size, per_second[size]) for size in crowd.sizes
        },
        "cpu_s": seen["cpu"],
    }


def draw_alone(engines: Path, crowd: Crowd) -> Right:
    """What is right: each case drawn by `Pipeline.generate`."""
    with Pipeline.load(engines) as pipeline:
        return {
            (case.body()["size"], case.seed): pipeline.generate(case.request()).pixels
            for cases in crowd.cases().values()
            for case in cases
        }


def services(bare: Companion, crowd: Crowd) -> dict[int, float]:
    """Pictures of each size that the engine alone draws a second, with as many under way as there are users."""
    return {
        size: rate(
            bare.ask("fill", size=size, clients=crowd.of_user.count(size), warm=1.0, seconds=SERVICE_SECONDS)["ended"]
        )
        for size in crowd.sizes
    }


def crowded(served: Served, clients: Companion, crowd: Crowd) -> Answer:
    """What users saw, and what the server counted meanwhile; requests repeated by their keys draw nothing."""
    for size in crowd.sizes:  # what is loaded or allocated at first use is no leak
        clients.ask("fill", url=served.url, size=size, clients=crowd.users, warm=0.0, seconds=min(1.0, crowd.seconds))
    before, spent = served.settle(), served.cpu_seconds()
    with Sampler(served.memory, crowd.sample_every) as memory:
        seen = clients.ask("soak", url=served.url, users=crowd.bodies(), seconds=crowd.seconds, think=crowd.think)
    after = served.settle()
    cpu = {name: seconds - spent[name] for name, seconds in served.cpu_seconds().items()} | {"clients": seen["cpu_s"]}
    counted = {name: after[name] - before[name] for name in COUNTED}
    errors = seen["errors"] + [
        f"{name} is {count:.0f} after {len(seen['answers'])} answers"
        for name, count in counted.items()
        if count != len(seen["answers"])
    ]
    keyed = [answer for answer in seen["answers"] if answer["is_keyed"]][-REPEATED:]
    jobs = clients.ask("again", url=served.url, requests=keyed)["jobs"]
    if jobs != [answer["job"] for answer in keyed] or served.settle()[COUNTED[-1]] != after[COUNTED[-1]]:
        errors.append(f"of {len(keyed)} keys that came again, some were drawn again")
    return seen | {"errors": errors, "counted": counted, "memory": memory.samples, "cpu": cpu}


def wrong_pictures(seen: Answer, right: Right) -> list[str]:
    """Answers whose pixels are not those of what was asked, and jobs that answered two requests."""
    drawn = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for data in seen["pictures"]]
    found, jobs = [], set()
    for answer in seen["answers"]:
        expected, got = right[answer["body"]["size"], answer["body"]["seed"]], drawn[answer["picture"]]
        if expected.shape != got.shape or np.abs(expected - got).max() > TOLERANCE:
            found.append(f"{answer['marker']} is another picture than {answer['body']}")
        if answer["job"] in jobs:
            found.append(f"{answer['marker']} was answered by the job of another request, {answer['job']}")
        jobs.add(answer["job"])
    return found


def response(answers: Sequence[Answer], crowd: Crowd, size: int, per_second: float) -> dict[str, Any]:
    """Response times of one size, and what theory gives for as many as the engine alone draws a second."""
    seconds = [answer["seconds"] for answer in answers if answer["body"]["size"] == f"{size}x{size}"]
    users, found = crowd.of_user.count(size), Distribution.of(seconds)
    saturated = users * len(crowd.sizes) / per_second - crowd.think
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


def flatness(samples: Sequence[int], every: float) -> dict[str, float]:
    """Resident MiB, of samples so many seconds apart: mean of the second and last quarter, slope of the second half."""
    mebi = [sample / MEBI for sample in samples]
    quarter, half = len(mebi) // 4, mebi[len(mebi) // 2 :]
    return {
        "second_quarter_mib": statistics.mean(mebi[quarter : 2 * quarter]),
        "last_quarter_mib": statistics.mean(mebi[-quarter:]),
        "slope_mib_per_min": statistics.linear_regression(range(len(half)), half).slope * 60 / every,
    }


def print_soak(figures: dict[str, Any]) -> None:
    counted = ", ".join(f"{name} {value:.0f}" for name, value in figures["counted"].items())
    print(
        f"{figures['users']} users, {figures['seconds']:.0f} s: {figures['answers']} answers by {figures['jobs']} jobs"
    )
    print(f"  counted by the server: {counted}; errors: {len(figures['errors'])}")
    for error in figures["errors"][:10]:
        print(f"  {error}")
    for size, row in figures["response"].items():
        p95, theory, ratio = (row[name] or float("nan") for name in ("p95_s", "theory_s", "p95_over_theory"))
        print(f"  {size}: p50 {row['p50_s']:.2f} s, p95 {p95:.2f} s; theory {theory:.2f} s: {ratio:.2f} times")
    for name, row in figures["memory"].items():
        early, late, slope = row.values()
        print(f"  {name}: {early:.1f} MiB, at the end {late:.1f}, {slope:+.2f} a minute", flush=True)
