"""The one thread that draws, and how the event loop waits for it.

Knows pictures and cancellation; not HTTP bodies.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from engine.errors import DeviceError
from engine.manifest import Manifest
from engine.pipeline import OnStep, Picture
from engine.request import PictureRequest

T = TypeVar("T")


class UnfinishedPicture(Protocol):
    """What may still be on its way from the GPU: `engine.pipeline.Drawing`, or a fake."""

    def finish(self) -> Picture:
        """Waits for it; called from any thread, also while the next one is drawn."""
        ...


class PictureSource(Protocol):
    """What is served: `engine.pipeline.Pipeline`, or a fake."""

    @property
    def manifest(self) -> Manifest: ...

    def check(self, request: PictureRequest) -> None:
        """Raises InvalidRequest; called from any thread, also while `start` runs."""
        ...

    def start(self, request: PictureRequest, on_step: OnStep | None = None) -> UnfinishedPicture:
        """Draws; called from one thread."""
        ...

    def close(self) -> None: ...


class DrawingThread:
    """Owns a pipeline, which draws one picture after the other, in the order of the calls."""

    def __init__(self, pipeline: PictureSource) -> None:
        self.pipeline = pipeline
        self.lost: str | None = None  # why nothing can be drawn in this process any more
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drawing")

    async def check(self, request: PictureRequest) -> None:
        """Raises InvalidRequest for what `draw` would refuse; does not wait for pictures being drawn."""
        await asyncio.to_thread(self.pipeline.check, request)

    async def draw(self, requests: Sequence[PictureRequest]) -> list[Picture]:
        """Draws pictures; what is left of one after its last step is done while the next one is drawn.

        When the caller is cancelled, it leaves the queue or stops after the running step.
        """
        finishing: list[asyncio.Task[Picture]] = []
        try:
            for request in requests:
                unfinished = await self._start(request)
                finishing.append(asyncio.create_task(asyncio.to_thread(unfinished.finish)))
            return [await task for task in finishing]
        except DeviceError as error:
            if error.sticky:
                self.lost = str(error)
            raise
        finally:
            for task in finishing:
                task.cancel()  # of those that nobody will ask for any more

    async def _start(self, request: PictureRequest) -> UnfinishedPicture:
        abandoned = threading.Event()

        def on_step(_done: int, _steps: int) -> None:
            if abandoned.is_set():
                raise _Abandoned

        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self.pipeline.start, request, on_step)
        finally:
            abandoned.set()

    async def close(self) -> None:
        """Waits for the thread, and frees the pipeline; what is queued is dropped."""
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
        self.pipeline.close()


class _Abandoned(Exception):
    """Ends a picture that nobody waits for; never leaves the drawing thread."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up.

    Args:
        request: its body has been read, so that all that can still come from the client is its leaving.

    Raises:
        ClientDisconnect: there is nobody left to answer.
    """
    task = asyncio.create_task(work)
    hung_up = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((task, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        hung_up.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
