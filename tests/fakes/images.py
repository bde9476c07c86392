"""An image store in memory, whose failures tests choose."""

from collections.abc import AsyncIterator

from server.errors import StoreUnavailable


class FakeImages:
    """Files by job and name.

    Attributes:
        is_away: True to refuse every call.
        is_full: True to take no files.
        puts, gets: number of attempts to store and to read a file.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.is_away = self.is_full = False
        self.puts = self.gets = 0

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
        self._require()
        self.files.pop(job, None)

    async def jobs_before(self, time: float) -> AsyncIterator[set[str]]:
        self._require()
        self.asked_before = time
        yield set(self.files)

    def _require(self) -> None:
        if self.is_away:
            raise StoreUnavailable("the image store is away")
