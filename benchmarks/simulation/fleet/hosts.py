"""All hosts of a simulated fleet: how many are in which state, and what was paid for them. Knows no jobs."""

import random
from collections import Counter
from collections.abc import Callable, Iterator

import simpy

from benchmarks.simulation.fleet.device import Device, DeviceSetup
from benchmarks.simulation.fleet.host import FleetHost, State
from benchmarks.simulation.fleet.image_device import ImageDevice
from benchmarks.simulation.fleet.queue import FleetJob
from benchmarks.simulation.fleet.scheduled_device import RunScheduler, ScheduledDevice
from benchmarks.simulation.policies import device_window, new_scheduler
from benchmarks.simulation.scenario import Fleet, SimulationScenario
from engine.plan.manifest import padded


class FleetHosts:
    """The hosts of a fleet, also those that were removed.

    Args:
        on_finished: called with a job when its last image is finished.
        on_room: called with a host when it has room.

    Attributes:
        present: hosts that were not removed; also those that have vanished for a while.
        rng: randomness of the fleet, but not of its load.
    """

    def __init__(
        self,
        env: simpy.Environment,
        scenario: SimulationScenario,
        spec: Fleet,
        on_finished: Callable[[FleetJob], object],
        on_room: Callable[[FleetHost], object],
    ) -> None:
        self.present: list[FleetHost] = []
        self.rng = random.Random(f"{scenario.seed} fleet")
        self._env, self._scenario, self._spec = env, scenario, spec
        self._on_room = on_room
        self._removed: list[FleetHost] = []
        self._states: Counter[State] = Counter()
        length = padded(scenario.prompt_length)
        prompt_seconds = scenario.times.prompt_encoder_seconds(length) if scenario.different_prompts else 0.0
        self._setup = DeviceSetup(env, scenario, self.rng, prompt_seconds, on_finished)
        self._window = device_window(spec.slots, spec.table, scenario.changes)
        self._largest_batch = self._new_scheduler().largest_batch
        self._counted_at = self._paid = self._ready = 0.0

    def add(self) -> FleetHost:
        """Return a new host, which is starting."""
        host = FleetHost(self._spec.devices_per_host, self._new_device, self._window, self._on_room)
        self._count()
        self.present.append(host)
        self._states[host.state] += 1
        return host

    def set_state(self, host: FleetHost, state: State) -> None:
        self._count()
        self._states[host.state] -= 1
        self._states[state] += 1
        host.state = state

    def remove(self, host: FleetHost) -> None:
        """Remove a host that has no jobs."""
        self.set_state(host, "gone")
        self.present.remove(host)
        self._removed.append(host)

    def in_state(self, *states: State) -> list[FleetHost]:
        return [host for host in self.present if host.state in states]

    def devices(self, state: State) -> int:
        """Return the number of devices of the hosts in a state."""
        return self._spec.devices_per_host * self._states[state]

    @property
    def busy_devices(self) -> int:
        """Devices that generate."""
        return sum(host.busy_devices for host in self.present)

    @property
    def busy_seconds(self) -> float:
        """Seconds that all devices have computed."""
        return sum(each.busy for each in self.all_devices())

    @property
    def paid_seconds(self) -> float:
        """Seconds for which devices were paid: ready, draining or starting."""
        self._count()
        return self._paid

    @property
    def ready_seconds(self) -> float:
        """Seconds for which devices were ready or draining."""
        self._count()
        return self._ready

    def all_devices(self) -> Iterator[Device]:
        """Yield the devices of all hosts, also of those that were removed."""
        return (each for host in (*self.present, *self._removed) for each in host.devices)

    def _count(self) -> None:
        """Count the seconds of devices since the last change of their number."""
        elapsed, self._counted_at = self._env.now - self._counted_at, self._env.now
        if elapsed:
            working = self.devices("ready") + self.devices("draining")
            self._paid += elapsed * (working + self.devices("starting"))
            self._ready += elapsed * working

    def _new_device(self, on_room: Callable[[], object]) -> Device:
        if self._spec.granularity == "image":
            return ImageDevice(self._setup, self._largest_batch, on_room)
        is_stepwise = self._spec.granularity == "step"
        return ScheduledDevice(self._setup, self._new_scheduler(), on_room, is_stepwise=is_stepwise)

    def _new_scheduler(self) -> RunScheduler:
        scenario, spec = self._scenario, self._spec
        return new_scheduler(scenario.manifest, spec.slots, spec.table, scenario.changes, RunScheduler)
