"""A short storm of faults over a fleet in processes, with a real broker and database: `zimage-bench fleet-faults`."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.fleet import faults
from benchmarks.fleet.cases import storm
from benchmarks.fleet.site import SiteOptions, missing, running

# those that the tests of hosts and stores do not have; a replica restarts while a host is cut off
FAULTS = ("hang_engine", "kill_engine", "cut_both", "kill_replica", "clock_ahead", "deliver_again")


@pytest.mark.slow
def test_storm_loses_nothing_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "BEYOND_LEASE", 11.0)
    monkeypatch.setattr(faults, "SKEWED", 3.0)
    options = SiteOptions("redis", replicas=2, hosts=2, clients=6, pass_seconds=(0.05,))
    if lacking := missing(options):
        pytest.skip(f"needs {lacking}")
    with running(options, tmp_path) as site:
        chosen = [fault for fault in faults.possible(site) if fault.__name__ in FAULTS]
        found, recoveries = asyncio.run(storm(site, chosen, options.keys, seed=1, pause=(0.5, 1.0)))
    assert not found["broken"], found["notes"]
    assert len(recoveries) >= 4 and all(recovery.under_way for recovery in recoveries)
    assert found["outcomes"]["done"] > 20 and found["records"]["accepted"] == found["records"]["ended"]
