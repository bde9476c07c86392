"""The store of an API replica, with patience for those that have waited long. Knows calls; not what jobs mean."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from server.errors import StoreUnavailable
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.images.image_store import ImageStore
from server.jobs.storage.retention import Retention

T = TypeVar("T")

THREADS = 8  # calls of the database at once; a process has 10 connections
PATIENCE_SECONDS = 30.0  # for the database to come back, before a client that has waited for its images is refused
RETRY_SECONDS = 1.0


class ReplicaStore(AsyncStore):
    """A fleet's store for an event loop.

    Attributes:
        last_failure: of a call, in words; None if all have succeeded.
    """

    def __init__(self, store: FleetStore, retention: Retention, images: ImageStore | None = None) -> None:
        super().__init__(store, retention, images, THREADS)
        self.last_failure: str | None = None

    async def call(self, method: Callable[..., T], *args: object) -> T:
        try:
            return await super().call(method, *args)
        except StoreUnavailable as error:
            self.last_failure = str(error)
            raise

    async def patient(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what some work returns, and try for PATIENCE_SECONDS while the store is not available."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_SECONDS
        while True:
            try:
                return await work()
            except StoreUnavailable:
                if loop.time() > until:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
