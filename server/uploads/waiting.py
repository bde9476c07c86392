"""Uploads that wait to be decoded: which one is next, and how many a client may have. Knows no processes."""

import asyncio
from collections import deque
from dataclasses import dataclass

from engine.fair_share import FairShare
from engine.init_image import InitImage
from server.uploads.decoder import Upload


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """An upload that waits since a time of the event loop's clock, and where its result goes."""

    upload: Upload
    client: str
    since: float
    done: "asyncio.Future[InitImage]"


class WaitingUploads:
    """Uploads that wait, with equal shares of the decoder's time for all clients.

    Args:
        most: uploads that may wait at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_client: dict[str, deque[Waiting]] = {}
        self._share: FairShare[str] = FairShare()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._by_client.values()))

    def has_room(self, client: str) -> bool:
        """Return True if another upload of a client may wait.

        A client gets at most as many places as it leaves free, so that others always find some.
        """
        return len(self._by_client.get(client, ())) < self._most - len(self)

    def add(self, waiting: Waiting) -> None:
        """Append an upload to those of its client."""
        self._by_client.setdefault(waiting.client, deque()).append(waiting)
        self._share.add(waiting.client)
        self._changed.set()

    def take_back(self, waiting: Waiting) -> None:
        """Drop an upload, unless it has been taken by `next`."""
        if waiting in self._by_client.get(waiting.client, ()):
            self._remove(waiting)
            self.finished(waiting, 0.0)

    async def next(self) -> Waiting:
        """Wait for an upload, and take one of the client that has used least time."""
        while not self._by_client:
            self._changed.clear()
            await self._changed.wait()
        client = min(self._by_client, key=self._share.spent)
        waiting = self._by_client[client][0]
        self._remove(waiting)
        return waiting

    def finished(self, waiting: Waiting, seconds: float) -> None:
        """Charge a client for the seconds that an upload took; 0 if it was dropped."""
        self._share.charge(waiting.client, seconds)
        self._share.remove(waiting.client)

    def _remove(self, waiting: Waiting) -> None:
        own = self._by_client[waiting.client]
        own.remove(waiting)
        if not own:
            del self._by_client[waiting.client]
