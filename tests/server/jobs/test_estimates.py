"""Estimates of the time that jobs take."""

import pytest
from fakes.jobs import image, job
from fakes.loop import MANIFEST

from engine.request import ImageRequest
from engine.size import Size
from engine.stages import StageTimes
from server.jobs.admission.estimates import MAX_SIZES, Estimates
from server.jobs.live_job import LiveJob

WIDE, TALL = Size(128, 64), Size(64, 128)


def test_known_size_is_not_estimated_from_another_of_equal_area() -> None:
    estimates = Estimates(MANIFEST)
    estimates.learn(WIDE, 8, StageTimes(passes=8.0))
    estimates.learn(TALL, 8, StageTimes(passes=24.0))
    for size, seconds in ((WIDE, 8.0), (TALL, 24.0)):
        wanted = LiveJob(job(request=ImageRequest("a cat", *size, num_inference_steps=8)))
        assert estimates.remaining(wanted) == pytest.approx(seconds)


def test_times_of_the_newest_sizes_are_remembered() -> None:
    estimates = Estimates(MANIFEST)
    for width in range(1, 2 * MAX_SIZES + 1):
        estimates.learn(Size(16 * width, 16), 8, StageTimes(passes=8.0))
    estimates.learn(Size(16, 16), 8, StageTimes(passes=24.0))
    assert len(estimates._averages) == MAX_SIZES
    wanted = LiveJob(job(request=ImageRequest("a cat", 16, 16, num_inference_steps=8)))
    assert estimates.remaining(wanted) == pytest.approx(24.0)


def test_steps_and_images_that_are_done_do_not_remain() -> None:
    estimates = Estimates(MANIFEST)
    estimates.learn(WIDE, 8, StageTimes(passes=8.0, vae_decoder=1.0))
    live = LiveJob(job(3, request=ImageRequest("a cat", *WIDE, num_inference_steps=8)))
    assert estimates.remaining(live) == pytest.approx(27.0)
    live.images[0] = image()
    live.steps_done[1] = 4
    assert estimates.remaining(live) == pytest.approx(14.0)


def test_steps_after_the_guided_ones_take_one_pass() -> None:
    """The noise levels of four steps at shift 3 are 1, 0.9, 0.75 and 0.5, so two of them are guided."""
    estimates = Estimates(MANIFEST)
    estimates.learn(WIDE, 6, StageTimes(passes=6.0))
    request = ImageRequest("a cat", *WIDE, num_inference_steps=4, guidance_scale=2.0, cfg_truncation=0.2)
    live = LiveJob(job(2, request=request))
    left = []
    for done in range(4):
        live.steps_done[0] = done
        left.append(estimates.remaining(live))
    assert left == pytest.approx([12.0, 10.0, 8.0, 7.0])
