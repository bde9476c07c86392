"""An image store in memory, whose failures tests choose."""

from collections.abc import AsyncIterator

from server.errors import StoreUnavailable


class FakeImages:
    """Files by job and name.

    Attributes:
        is_away: True to refuse every call, with `error`.
        is_full: True to take no files.
        stuck: jobs whose files cannot be deleted.
        puts, gets, deletes: number of attempts to store and to read a file, and to delete those of a job.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.is_away = self.is_full = False
        self.error: type[Exception] = StoreUnavailable
        self.stuck: set[str] = set()
        self.puts = self.gets = self.deletes = 0

    async def put(self, job: str, name: str, media_type: str, data: bytes) -> None:
        self.puts += 1
        self._require()
        if self.is_full:
            raise StoreUnavailable("the image store is full")
        assert media_type == "image/png"
        assert name not in self.files.get(job, {}), "a file was written twice"
        self.files.setdefault(job, {})[name] = data

    async def get(self, job: str, name: str) -> bytes | None:
        self.gets += 1
        self._require()
        return self.files.get(job, {}).get(name)

    async def delete(self, job: str) -> None:
        self.deletes += 1
        self._require()
        if job in self.stuck:
            raise StoreUnavailable(f"the files of {job} are in use")
        self.files.pop(job, None)

    async def jobs_before(self, time: float) -> AsyncIterator[set[str]]:
        self._require()
        self.asked_before = time
        yield set(self.files)

    def _require(self) -> None:
        if self.is_away:
            raise self.error("the image store is away")
