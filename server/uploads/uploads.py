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

log = logging.getLogger(__name__)


class Uploads:
    """Prepares uploads in the order in which they come.

    Args:
        command: starts the decoder's process; for tests.
    """

    def __init__(self, limits: UploadLimits | None = None, command: Sequence[str] = COMMAND) -> None:
        self.limits = limits or UploadLimits()
        self.decoder = Decoder(self.limits, command)
        self._waiting: asyncio.Queue[tuple[Upload, asyncio.Future[InitImage]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def prepare(self, image: bytes, mask: bytes | None, preparation: Preparation) -> InitImage:
        """Return an image to start from, in a size that the plans can generate.

        A caller that is cancelled while its files wait takes them back; while they are decoded, the result is dropped.

        Args:
            image: bytes of a file.
            mask: bytes of a file, or None.

        Raises:
            InvalidRequest: the files or the options cannot be used; `param` names the field.
            UploadsBusy: too many uploads wait, or the machine has no time or memory for them now.
        """
        check_header(image, preparation.image_param, self.limits.file)
        if mask is not None:
            check_header(mask, preparation.mask_param, self.limits.file)
        if self._is_closed:
            raise UploadsBusy("the server is shutting down", RETRY_AFTER)
        if self._waiting.qsize() >= self.limits.waiting:
            raise UploadsBusy(
                f"too many uploads wait to be decoded, got {self._waiting.qsize()}; at most {self.limits.waiting} may",
                RETRY_AFTER,
            )
        done: asyncio.Future[InitImage] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((Upload(image, mask, preparation), done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="uploads")
        return await done

    async def close(self) -> None:
        """Refuse what waits and end the process."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        while not self._waiting.empty():
            _, done = self._waiting.get_nowait()
            if not done.done():
                done.set_exception(UploadsBusy("the server is shutting down", RETRY_AFTER))
        await self.decoder.stop()

    async def _run(self) -> None:
        """Prepare uploads until none has come for a while; then end the process, which gives its memory back."""
        while True:
            try:
                async with asyncio.timeout(self.limits.idle):
                    upload, done = await self._waiting.get()
            except TimeoutError:
                await self.decoder.stop()
                if self._waiting.empty():
                    return
                continue
            if done.cancelled():
                continue
            try:
                result = await self.decoder.prepare(upload)
            except (InvalidRequest, UploadsBusy) as error:
                if not done.done():
                    done.set_exception(error)
            except Exception:
                log.exception("an upload could not be decoded")
                if not done.done():
                    done.set_exception(UploadsBusy("the machine cannot decode images now", RETRY_AFTER))
            except asyncio.CancelledError:
                if not done.done():
                    done.set_exception(UploadsBusy("the server is shutting down", RETRY_AFTER))
                raise
            else:
                if not done.done():
                    done.set_result(result)
