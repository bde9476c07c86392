"""Where the bytes of images are, if not in the database. Knows the interface; the places are in modules of their own."""

import secrets
from collections.abc import AsyncIterator
from typing import Protocol
from urllib.parse import urlsplit

URL_FORMS = "file:///FOLDER or s3://BUCKET/PREFIX?endpoint=URL"


class ImageStore(Protocol):
    """Files of jobs, each written once, all of it or nothing.

    Every method may raise StoreUnavailable, and may be called again then. None holds up the event loop.
    """

    async def put(self, job: str, name: str, media_type: str, data: bytes) -> None: ...

    async def get(self, job: str, name: str) -> bytes | None:
        """Return a file; None if there is none."""

    async def delete(self, job: str) -> None:
        """Delete all files of a job; there may be none."""

    def jobs_before(self, time: float) -> AsyncIterator[set[str]]:
        """Yield the jobs that have files and none since `time`, in unix seconds, page by page."""


def open_image_store(url: str) -> ImageStore:
    """Return the image store at `file:///FOLDER` or `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`.

    Raises:
        ValueError: the URL has another form.
        StoreUnavailable: the folder cannot be created.
        ModuleNotFoundError: the package for S3 is not installed.
    """
    match urlsplit(url).scheme:
        case "file":
            from server.jobs.storage.folder_images import FolderImages

            return FolderImages(folder_of(url))
        case "s3":
            from server.jobs.storage.s3_images import S3Images

            return S3Images(url)
    raise ValueError(f"expected {URL_FORMS}, got {url!r}")


async def check(images: ImageStore) -> None:
    """Write, read and delete a small file. Raises StoreUnavailable, with advice."""
    job = f"check_{secrets.token_hex(8)}"
    await images.put(job, "check.txt", "text/plain", b"zimage-trt can write here\n")
    await images.get(job, "check.txt")
    await images.delete(job)
