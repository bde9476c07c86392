"""How long jobs take, from images that were generated."""

import pytest
from fakes.jobs import job
from fakes.loop import MANIFEST

from engine.request import ImageRequest
from server.jobs.estimates import Estimates
from server.jobs.live_job import LiveJob

WIDE, TALL = (64, 128), (128, 64)  # height, width


def test_a_size_that_was_seen_is_not_guessed_from_another_of_its_area() -> None:
    estimates = Estimates(MANIFEST)
    estimates.learn(WIDE, 8, {"passes": 8.0})
    estimates.learn(TALL, 8, {"passes": 24.0})
    for size, seconds in ((WIDE, 8.0), (TALL, 24.0)):
        wanted = LiveJob(job(requests=(ImageRequest("a cat", *size, num_inference_steps=8),)))
        assert estimates.remaining(wanted) == pytest.approx(seconds)
