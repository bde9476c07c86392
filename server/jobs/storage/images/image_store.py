"""Interface of the stores that keep images outside the database; see `folder_images` and `s3_images`.

Knows names and URLs; neither rows nor HTTP.
"""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from server.errors import StoreUnavailable


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


async def open_image_store(url: str | None) -> ImageStore | None:
    """Return the image store at a URL that `check_url` accepts, after a file was written, read and deleted there.

    Raises:
        ValueError: the URL has another form.
        StoreUnavailable: the place cannot be used, or the package for S3 is not installed.
    """
    if url is None:
        return None
    check_url(url)
    images = _unchecked(url)
    job, text = f"check_{secrets.token_hex(8)}", b"zimage-trt can write here\n"
    await images.put(job, "check.txt", "text/plain", text)
    if (found := await images.get(job, "check.txt")) != text:
        raise StoreUnavailable(f"the image store {url} returns {found!r} for a file that had {text!r}; use another")
    await images.delete(job)
    return images


def _unchecked(url: str) -> ImageStore:
    if urlsplit(url).scheme == "file":
        from server.jobs.storage.images.folder_images import FolderImages

        return FolderImages(Path(unquote(urlsplit(url).path)))
    try:
        from server.jobs.storage.images.s3_images import S3Images  # takes long to import
    except ModuleNotFoundError as error:
        raise StoreUnavailable(
            f"images in S3 need the extra s3 ({error}); in the checkout: pip install '.[s3]'"
        ) from error
    return S3Images(url)


def check_url(url: str) -> None:
    """Raise ValueError unless a URL has the form of an image store's.

    `file:///FOLDER`, or `s3://BUCKET/PREFIX` with `?endpoint=URL` for another service than Amazon's and `&region=NAME`.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "file":
            if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
                raise ValueError(f"must be file:///FOLDER, such as file:///srv/images; got {url!r}")
        case "s3":
            _check_s3(url)
        case _:
            raise ValueError(f"must be file:///FOLDER or s3://BUCKET/PREFIX?endpoint=URL; got {url!r}")


def _check_s3(url: str) -> None:
    parts, parameters = urlsplit(url), s3_parameters(url)
    unknown = sorted(set(parameters) - {"endpoint", "region"})
    if not parts.netloc or unknown or parts.fragment:
        raise ValueError(f"must be s3://BUCKET/PREFIX?endpoint=URL&region=NAME; got {url!r}")
    if "@" in url:
        raise ValueError("must not have credentials; they belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    endpoint = urlsplit(parameters.get("endpoint", "https://s3"))
    if endpoint.scheme not in ("http", "https") or not endpoint.netloc:
        raise ValueError(f"must have an endpoint such as http://minio:9000; got {parameters['endpoint']!r}")


def s3_parameters(url: str) -> dict[str, str]:
    """Return `endpoint` and `region` of an S3 URL, as far as it has them."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
