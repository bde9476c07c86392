"""Images in S3, Amazon's or that of another service, over obstore. Knows objects; neither rows nor formats."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store

from server.errors import StoreUnavailable
from server.jobs.storage.images.image_store import s3_parameters

if TYPE_CHECKING:
    from obstore.store import S3Config  # not importable at runtime

CONNECT_TIMEOUT, REQUEST_TIMEOUT = timedelta(seconds=5), timedelta(seconds=20)
MAX_RETRIES, RETRY_TIMEOUT = 3, timedelta(seconds=10)  # for answers such as 503; the caller tries again later
PAGE = 1000  # objects
ADVICE = {
    "PermissionDeniedError": "its key must be allowed to list, read, write and delete there",
    "UnauthenticatedError": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "FileNotFoundError": "the bucket must exist",
}


class S3Images:
    """Objects PREFIX/JOB/NAME in a bucket; see `ImageStore`.

    Credentials come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and so on, or from the machine's or pod's role.

    Args:
        url: one that `image_store.check_url` accepts.
    """

    def __init__(self, url: str) -> None:
        self._store = _open(url)
        self._name = f"the bucket of images {url}"

    async def put(self, job: str, name: str, media_type: str, data: bytes) -> None:
        with self._explained():
            # in one request: the parts of an upload that breaks off would stay, out of sight
            await self._store.put_async(
                f"{job}/{name}", data, attributes={"Content-Type": media_type}, use_multipart=False
            )

    async def get(self, job: str, name: str) -> bytes | None:
        with self._explained():
            try:
                found = await self._store.get_async(f"{job}/{name}")
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
            return bytes(await found.bytes_async())

    async def delete(self, job: str) -> None:
        with self._explained():
            async for page in self._store.list(f"{job}/", chunk_size=PAGE):
                await self._store.delete_async([item["path"] for item in page])

    async def jobs_before(self, time: float) -> AsyncIterator[set[str]]:
        with self._explained():
            async for page in self._store.list(chunk_size=PAGE):
                new = {_job(item["path"]) for item in page if item["last_modified"].timestamp() >= time}
                yield {_job(item["path"]) for item in page} - new

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise StoreUnavailable, with advice, for what the service refuses and for a service that is away."""
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0].partition(": <?xml")[0]  # the rest repeats it
            advice = ADVICE.get(type(error).__name__, "check that the service runs and can be reached")
            raise StoreUnavailable(f"{self._name}: {reason}; {advice}") from error


def _open(url: str) -> S3Store:
    parts, parameters = urlsplit(url), s3_parameters(url)
    config: S3Config = {}
    if "endpoint" in parameters:
        config["endpoint"] = parameters["endpoint"]
    if "region" in parameters:
        config["region"] = parameters["region"]
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        client_options={
            "allow_http": parameters.get("endpoint", "").startswith("http:"),
            "connect_timeout": CONNECT_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
        },
        retry_config={"max_retries": MAX_RETRIES, "retry_timeout": RETRY_TIMEOUT},
    )


def _job(path: str) -> str:
    return path.partition("/")[0]
