"""Uploaded images, from the bytes that a client sent to an `InitImage`.

Uploads are decoded one after the other in a process of their own (see `decoder`), never in the event loop. Nothing is
ever fetched from a URL. Knows neither HTTP nor jobs.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import InvalidRequest
from engine.images.header import check_header
from engine.images.preparation import Preparation
from engine.init_image import InitImage
from server.errors import UploadsBusy
from server.uploads.decoder import COMMAND, RETRY_AFTER, Decoder, Upload
from server.uploads.limits import UploadLimits
from server.uploads.waiting import Waiting, WaitingUploads

log = logging.getLogger(__name__)


class Uploads:
    """Prepares uploads, with equal shares of the decoder's time for all clients.

    Args:
        command: starts the decoder's process; for tests.
    """

    def __init__(self, limits: UploadLimits | None = None, command: Sequence[str] = COMMAND) -> None:
        self.limits = limits or UploadLimits()
        self.decoder = Decoder(self.limits, command)
        self._waiting = WaitingUploads(self.limits.waiting)
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def prepare(self, image: bytes, mask: bytes | None, preparation: Preparation, client: str = "") -> InitImage:
        """Return an image to start from, in a size that the plans can generate.

        A caller that is cancelled while its files wait takes them back; while they are decoded, the result is dropped.

        Args:
            image: bytes of a file.
            mask: bytes of a file, or None.
            client: name of the client, which gets an equal share of the decoder's time.

        Raises:
            InvalidRequest: the files or the options cannot be used; `param` names the field.
            UploadsBusy: too many uploads wait, or the machine has no time or memory for them now.
        """
        check_header(image, preparation.image_param, self.limits.file)
        if mask is not None:
            check_header(mask, preparation.mask_param, self.limits.file)
        if self._is_closed:
            raise UploadsBusy("the server is shutting down", RETRY_AFTER)
        if not self._waiting.has_room(client):
            raise UploadsBusy(f"too many images wait to be decoded ({len(self._waiting)})", RETRY_AFTER)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[InitImage] = loop.create_future()
        waiting = Waiting(Upload(image, mask, preparation), client, loop.time(), done)
        self._waiting.add(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="uploads")
        try:
            return await done
        except asyncio.CancelledError:
            self._waiting.take_back(waiting)
            raise
        finally:
            del done, waiting  # they have the error, whose traceback has this frame and so the files: a cycle

    async def close(self) -> None:
        """Refuse what waits and end the process."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        while len(self._waiting):
            _set_error((await self._waiting.next()).done, UploadsBusy("the server is shutting down", RETRY_AFTER))
        await self.decoder.stop()

    async def _run(self) -> None:
        """Prepare uploads until none has come for a while; then end the process, which gives its memory back."""
        while True:
            while await self._decode_next():  # whose frame holds an upload's files no longer than it takes
                pass
            await self.decoder.stop()
            if not len(self._waiting):
                return

    async def _decode_next(self) -> bool:
        """Wait for the next upload and prepare it. Return False if none has come for a while."""
        try:
            async with asyncio.timeout(self.limits.idle):
                waiting = await self._waiting.next()
        except TimeoutError:
            return False
        started = asyncio.get_running_loop().time()
        try:
            await self._decode(waiting)
        finally:
            self._waiting.finished(waiting, asyncio.get_running_loop().time() - started)
        return True

    async def _decode(self, waiting: Waiting) -> None:
        done = waiting.done
        if done.cancelled():
            return
        if asyncio.get_running_loop().time() - waiting.since > self.limits.patience:
            _set_error(done, UploadsBusy("too many images wait to be decoded", RETRY_AFTER))
            return
        try:
            result = await self.decoder.prepare(waiting.upload)
        except (InvalidRequest, UploadsBusy) as error:
            _set_error(done, error)
        except asyncio.CancelledError:
            _set_error(done, UploadsBusy("the server is shutting down", RETRY_AFTER))
            raise
        except Exception:
            log.exception("an upload could not be decoded")
            _set_error(done, UploadsBusy("the machine cannot decode images now", RETRY_AFTER))
        else:
            if not done.done():
                done.set_result(result)


def _set_error(done: "asyncio.Future[InitImage]", error: Exception) -> None:
    """Pass an error on without its traceback, whose frames refer to `done`."""
    if not done.done():
        done.set_exception(error.with_traceback(None))
