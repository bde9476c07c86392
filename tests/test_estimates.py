"""How long jobs take, from pictures that were drawn."""

import pytest
from fake_loop import MANIFEST
from sample_jobs import job

from engine.request import PictureRequest
from server.estimates import Estimates
from server.live_job import LiveJob

WIDE, TALL = (64, 128), (128, 64)  # height, width


def test_a_size_that_was_seen_is_not_guessed_from_another_of_its_area() -> None:
    estimates = Estimates(MANIFEST)
    estimates.learn(WIDE, 8, {"passes": 8.0})
    estimates.learn(TALL, 8, {"passes": 24.0})
    for size, seconds in ((WIDE, 8.0), (TALL, 24.0)):
        wanted = LiveJob(job(requests=(PictureRequest("a cat", *size, num_inference_steps=8),)))
        assert estimates.remaining(wanted) == pytest.approx(seconds)
