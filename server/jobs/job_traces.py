"""Spans of jobs: their time in the queue, each attempt to generate them, and the stages of their images.

Knows jobs; neither workers nor where spans go. Without tracing, every method returns at once. Workers report durations,
so the stages of an image are laid end to end, up to the moment when its file came.
"""

import time
from dataclasses import fields
from typing import TYPE_CHECKING

from engine.stages import StageTimes
from server import tracing
from server.jobs.job import Job, StoredImage

if TYPE_CHECKING:
    from opentelemetry.trace import Span

STAGES = [field.name for field in fields(StageTimes) if field.name != "passes"]  # which are part of `denoiser`


class JobTraces:
    """Spans of the jobs of one process; each belongs to the trace of the request that made the job."""

    def __init__(self) -> None:
        self._attempts: dict[str, Span] = {}  # by job, of jobs that are running

    def claimed(self, job: Job, worker: str, began: float) -> None:
        """Record that a worker host has claimed a job, with a request to the database that began at `began`."""
        if (active := tracing.active()) is not None:
            active.record("claim", job.trace, began, time.time(), _attributes(job) | {"zimage.worker": worker})

    def started(self, job: Job) -> None:
        """Begin an attempt. The first one ends the time in the queue."""
        if (active := tracing.active()) is None:
            return
        self.stopped(job, "another attempt began")
        now, attributes = time.time(), _attributes(job)
        if job.attempts <= 1:
            active.record("queue", job.trace, min(job.created, now), now, attributes)
        attributes |= {"zimage.attempt": job.attempts}
        self._attempts[job.id] = active.start("generate", job.trace, attributes, now)

    def image_finished(self, job: Job, image: StoredImage) -> None:
        """Record the stages of an image whose file has come."""
        active, attempt = tracing.active(), self._attempts.get(job.id)
        if active is None or attempt is None:
            return
        metadata, end = image.metadata, time.time()
        seconds = metadata.seconds
        attributes: dict[str, str | int | float | bool] = {
            "zimage.image": image.index,
            "zimage.width": metadata.width,
            "zimage.height": metadata.height,
            "zimage.passes": metadata.forwards,
            "zimage.passes_seconds": seconds.passes,
        }
        span = active.record("image", attempt, end - seconds.total, end, attributes)
        began = end - seconds.total
        for stage in STAGES:
            if spent := getattr(seconds, stage):
                active.record(stage, span, began, began + spent, {})
                began += spent

    def stopped(self, job: Job, reason: str) -> None:
        """End an attempt that did not finish its job."""
        active, attempt = tracing.active(), self._attempts.pop(job.id, None)
        if attempt is not None:
            if active is not None:
                active.fail(attempt, reason)
            attempt.end()

    def ended(self, job: Job) -> None:
        """End the spans of a job that has ended."""
        active = tracing.active()
        if active is None:
            return
        attempt = self._attempts.pop(job.id, None)
        if attempt is None:  # it was never begun
            now = time.time()
            attempt = active.start("queue", job.trace, _attributes(job), min(job.created, now))
        attempt.set_attribute("zimage.state", job.state.value)
        if job.error is not None:
            active.fail(attempt, job.error.code)
        attempt.end()


def _attributes(job: Job) -> dict[str, str | int | float | bool]:
    return {
        "zimage.job": job.id,
        "zimage.api": job.api,
        "zimage.priority": job.priority,
        "zimage.images": job.image_count,
    }
