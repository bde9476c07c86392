"""The store as one worker host uses it: it changes only the jobs that this host holds."""

from server.jobs.storage.databases.database import Database, Value
from server.jobs.storage.retention import Retention
from server.jobs.storage.store import JobStore


class HostStore(JobStore):
    """A store whose writes return False, and change nothing, for jobs that the host does not hold.

    So a host that was cut off cannot end a job that another one generates by now. A host does not prune.

    Args:
        worker: id of the host.
    """

    deletes_jobs = False
    _changeable = "id = ? AND worker = ?"

    def __init__(self, database: Database, worker: str) -> None:
        super().__init__(database)
        self._worker = worker

    def prune(self, retention: Retention) -> int:  # noqa: ARG002
        self.bytes_since_prune = 0
        return 0

    def close(self) -> None:
        """Leave the database open, since it is the fleet store's."""

    def _keys(self, id: str) -> tuple[Value, ...]:
        return id, self._worker
