"""Finishing of images in threads: from latents to image files, beside the steps of other images.

Knows pixels and files; not the loop.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from engine.array import Array
from engine.errors import DeviceError, LoraMismatch, NonFiniteOutput, ZImageError
from engine.images.encode import encode, enlarge
from engine.images.mask_crop import paste_back
from engine.images.metadata import file_metadata
from engine.init_image import InitImage
from engine.plan.manifest import Manifest
from engine.request import ImageFormat
from engine.sampling import preview
from engine.scheduler.events import DenoisedImage
from server.worker import messages
from server.worker.messages import FromWorker

log = logging.getLogger(__name__)

FINISHERS = 2  # threads for pixels and encoding


class ImageFinisher:
    """Finishes and encodes images in threads, and sends them. An image's previews come before the image.

    Args:
        send: takes a message to the server, from any thread.
        busy: encloses the work on one image or preview.
    """

    def __init__(
        self,
        manifest: Manifest,
        send: Callable[[FromWorker], None],
        busy: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._manifest, self._send, self._busy = manifest, send, busy
        self._threads = ThreadPoolExecutor(FINISHERS, thread_name_prefix="finisher")
        self._last: dict[str, Future[None]] = {}  # task of each image

    def show_preview(
        self,
        key: str,
        done: int,
        estimate: Array,
        image_format: ImageFormat,
        init_image: InitImage | None = None,
    ) -> None:
        """Send a preview after `done` steps, pasted into the original where the image will be.

        Args:
            estimate: latents [16, h, w].
        """
        self._submit(key, partial(self._preview, key, done, estimate, image_format, init_image))

    def finish(self, key: str, pending: DenoisedImage, image_format: ImageFormat) -> None:
        """Send an image, or the reason for its failure."""
        self._submit(key, partial(self._finish, key, pending, image_format))
        self.forget(key)

    def forget(self, key: str) -> None:
        """Drop the record of the last task of an image that gets no more tasks."""
        self._last.pop(key, None)

    def close(self) -> None:
        """Finish what has started, and nothing else."""
        self._threads.shutdown(cancel_futures=True)

    def _submit(self, key: str, work: Callable[[], None]) -> None:
        before = self._last.get(key)

        def run() -> None:
            if before is not None:
                wait([before])  # no deadlock: it was submitted earlier, so it runs already
            with self._busy():
                work()

        self._last[key] = self._threads.submit(run)

    def _preview(
        self, key: str, done: int, estimate: Array, image_format: ImageFormat, init_image: InitImage | None
    ) -> None:
        assert self._manifest.preview is not None
        try:
            pixels = preview.project(self._manifest.preview, estimate)
            large = enlarge(pixels, self._manifest.model.vae_scale)
            if init_image is not None:
                large = paste_back(large, init_image)
            self._send(messages.PreviewReady(key, done, encode(large, image_format)))
        except Exception:  # the image itself may still be right
            log.exception("a preview of %s could not be made", key)

    def _finish(self, key: str, pending: DenoisedImage, image_format: ImageFormat) -> None:
        request = pending.sample.request
        try:
            image = pending.finish()
            started = time.perf_counter()
            metadata = image.metadata(self._manifest, request)
            data = encode(image.pixels, image_format, file_metadata(request, metadata))
        except DeviceError as error:  # the next step fails too; report it now in case there is none
            self._send(messages.Fatal(str(error)))
        except ZImageError as error:
            self._send(failure(key, error))
        except Exception:
            log.exception("%s could not be encoded", key)
            self._send(messages.Failed(key, "internal_error", "the image could not be encoded"))
        else:
            self._send(messages.Finished(key, data, metadata.with_encoding(time.perf_counter() - started)))


def failure(key: str, error: ZImageError) -> messages.Failed:
    """Return the message that an image failed with an error of the engine."""
    match error:
        case NonFiniteOutput():
            code = "non_finite_output"
        case LoraMismatch():
            code = "lora_unavailable"
        case _:
            code = "device_error"
    return messages.Failed(key, code, str(error))
