"""Load of a simulation: who sends requests and when, and when refused clients try again. Knows no server."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import simpy

from benchmarks.simulation.clock import Process
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop, SimulationScenario
from benchmarks.workload.arrivals import poisson
from benchmarks.workload.mix import RequestKind

MIN_RETRY_AFTER = 1  # seconds, as in `server.api.errors`


@dataclass(slots=True)
class User:
    """A user of a closed loop.

    Attributes:
        client: name by which the server knows the user.
        rng: decides the user's pauses and requests.
    """

    client: str
    rng: random.Random

    def pause(self, load: ClosedLoop) -> float:
        """Return the seconds before the next request."""
        return self.rng.expovariate(1 / load.think) if load.think else 0.0


def users(scenario: SimulationScenario, load: ClosedLoop) -> Iterator[User]:
    """Yield the users of a closed loop."""
    for number in range(load.users):
        client = f"client {number % load.clients if load.clients else number}"
        yield User(client, random.Random(f"{scenario.seed} user {number}"))


def arrivals(
    env: simpy.Environment,
    scenario: SimulationScenario,
    load: OpenLoop,
    send: Callable[[RequestKind, str], object],
) -> Process:
    """Send the requests of an open loop when they are due.

    Args:
        send: called with the kind and the client of each request.
    """
    rng, kinds = random.Random(f"{scenario.seed} kinds"), scenario.mix.kinds
    for number, at in enumerate(poisson(load.rate, random.Random(f"{scenario.seed} arrivals"))):
        if at >= scenario.seconds:
            return
        yield env.timeout(at - env.now)
        kind = kinds[0] if len(kinds) == 1 else scenario.mix.choose(rng)
        send(kind, f"client {number % load.clients}")


def retry_after(seconds: float) -> int:
    """Return the Retry-After of a refusal, in whole seconds as HTTP has it."""
    return max(MIN_RETRY_AFTER, math.ceil(seconds))
