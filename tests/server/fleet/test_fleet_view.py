"""Hosts that can take the jobs of the queue."""

from dataclasses import replace

import pytest
from fakes.hosts import device, worker

from server.fleet.fleet_view import FleetView
from server.jobs.storage.fleet.worker_info import QueueLength

PLAIN = QueueLength("nano", "interactive", None, waiting=1, held=0, oldest=0.0, cost=0.0)
WORKERS = (
    worker("starting", devices=(device(is_ready=False),)),
    replace(worker("with a LoRA"), loras=("ink",)),
    replace(worker("of other plans"), plan_id="other", image_input=True),
    replace(worker("draining"), loras=("ink", "outlines"), is_draining=True),
)


@pytest.mark.parametrize(
    ("needs", "hosts"),
    [
        ({}, 3),
        ({"model": None}, 3),
        ({"model": "another"}, 0),
        ({"plan_id": "plan"}, 2),
        ({"plan_id": "gone"}, 0),
        ({"lora": "ink"}, 1),
        ({"lora": "outlines"}, 0),
        ({"lora": "ink", "plan_id": "other"}, 0),
        ({"image_input": True}, 1),
    ],
)
def test_hosts_with_all_that_jobs_need_are_counted(needs: dict[str, object], hosts: int) -> None:
    assert FleetView(WORKERS).hosts_for(replace(PLAIN, **needs)) == hosts
