"""Estimates of the time that jobs take."""

import pytest
from fakes.jobs import job
from fakes.loop import MANIFEST

from engine.request import ImageRequest
from engine.size import Size
from engine.stages import StageTimes
from server.jobs.estimates import Estimates
from server.jobs.live_job import LiveJob

WIDE, TALL = Size(128, 64), Size(64, 128)


def test_known_size_is_not_estimated_from_another_of_equal_area() -> None:
    estimates = Estimates(MANIFEST)
    estimates.learn(WIDE, 8, StageTimes(passes=8.0))
    estimates.learn(TALL, 8, StageTimes(passes=24.0))
    for size, seconds in ((WIDE, 8.0), (TALL, 24.0)):
        wanted = LiveJob(job(request=ImageRequest("a cat", *size, num_inference_steps=8)))
        assert estimates.remaining(wanted) == pytest.approx(seconds)
