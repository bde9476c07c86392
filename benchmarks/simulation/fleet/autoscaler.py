"""The number of hosts that an autoscaler wants. Knows neither hosts nor time."""

import math

from benchmarks.simulation.scenario import Autoscaler


def wanted_hosts(policy: Autoscaler, devices_per_host: int, busy: float, waiting_seconds: float) -> int:
    """Return the number of hosts that a load needs.

    Args:
        busy: mean number of devices that computed since the last decision.
        waiting_seconds: seconds of one device for the jobs that no host has.
    """
    by_load = busy / policy.utilisation
    by_queue = busy + waiting_seconds / policy.target
    wanted = math.ceil(max(by_load, by_queue) / devices_per_host)
    return min(max(wanted, policy.min_hosts), policy.max_hosts)
