"""Announcements of a worker host to the API replicas about its jobs. Knows events; no listeners."""

from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import ImageStored, JobEnded, JobRunning, Preview, StepsDone
from server.jobs.follower import Change, Follower, JobPreview, Progress
from server.jobs.job import Job


def announce_stored(bus: EventBus, job: Job, index: int | None) -> None:
    """Announce that the store has a job's state, or its image at an index."""
    if index is not None:
        bus.publish(ImageStored(job.id, index))
    else:
        bus.publish(JobEnded(job.id) if job.state.is_final else JobRunning(job.id))


class ProgressAnnouncer(Follower):
    """A follower of a job that announces its steps and previews."""

    def __init__(self, job_id: str, bus: EventBus) -> None:
        super().__init__()
        self._job_id, self._bus = job_id, bus

    def put(self, change: Change) -> None:
        match change:
            case Progress(done=done, steps=steps):
                self._bus.publish(StepsDone(self._job_id, done, steps))
            case JobPreview(index, done, data):
                self._bus.publish(Preview(self._job_id, index, done, data))
