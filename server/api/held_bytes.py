"""Memory for large bodies while they are read. Knows sizes and clients; not what bodies mean."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import UploadsBusy

SHARE = 3  # times the free bytes: a client with more must wait, so that others always find room
RETRY_AFTER = 5.0  # seconds


class HeldBytes:
    """Bytes of the bodies that are being read, beyond those that every body may have.

    Args:
        most: bytes at a time, of all clients.
        free: bytes of each body that do not count.
    """

    def __init__(self, most: int, free: int) -> None:
        self._most, self._free = most, free
        self._by_client: Counter[str] = Counter()

    @contextmanager
    def reading(self, client: str) -> Iterator["HeldBody"]:
        """Yield the account of one body of a client."""
        body = HeldBody(self, client)
        try:
            yield body
        finally:
            self._by_client[client] -= body.counted
            self._by_client += Counter()  # drops those at 0

    def _take(self, client: str, more: int) -> None:
        left = self._most - self._by_client.total() - more
        if self._by_client[client] + more > SHARE * left:  # also if nothing is left
            raise UploadsBusy("too many large requests are being read; try again later", RETRY_AFTER)
        self._by_client[client] += more

    def count(self, body: "HeldBody", size: int) -> None:
        """Count the bytes of a body so far.

        Raises:
            UploadsBusy: there is no room for them.
        """
        more = max(size - self._free, 0) - body.counted
        if more > 0:
            self._take(body.client, more)
            body.counted += more


class HeldBody:
    """A body that is being read.

    Attributes:
        counted: its bytes that count.
    """

    def __init__(self, held: HeldBytes, client: str) -> None:
        self.client, self.counted = client, 0
        self._held = held

    def grow(self, size: int) -> None:
        """Tell its bytes so far. Raises UploadsBusy: there is no room for them."""
        self._held.count(self, size)
