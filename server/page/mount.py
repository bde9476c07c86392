"""The page: static files at `/` and `/page/`. Knows files and headers; not what the page does.

The page uses only the public API, and all its URLs are relative: it works behind any proxy and prefix.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fastapi import APIRouter, HTTPException, Request, Response

STATIC = Path(__file__).with_name("static")
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "cache-control": "no-cache",  # browsers ask with the ETag, so that all files are of one version after an upgrade
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page, plain and compressed."""

    media_type: str
    plain: bytes
    zipped: bytes
    etag: str  # of the content: files of two versions may have the same size and time

    @classmethod
    def read(cls, path: Path) -> Self:
        data = path.read_bytes()
        etag = f'W/"{hashlib.sha256(data).hexdigest()[:32]}"'  # weak: the same for plain and compressed
        return cls(TYPES[path.suffix], data, gzip.compress(data, mtime=0), etag)

    def response(self, request: Request) -> Response:
        """Return the file, or 304 if the client has it."""
        headers = HEADERS | {"etag": self.etag}
        known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if "*" in known or self.etag in known or self.etag.removeprefix("W/") in known:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.plain, media_type=self.media_type, headers=headers)
        return Response(self.zipped, media_type=self.media_type, headers=headers | {"content-encoding": "gzip"})


def page_router() -> APIRouter:
    """Return the routes of the page. Its files are read now, so that no request can name another file."""
    files = {
        path.relative_to(STATIC).as_posix(): PageFile.read(path)
        for path in sorted(STATIC.rglob("*"))
        if path.suffix in TYPES
    }
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        return files[INDEX].response(request)

    @router.get("/page/{name:path}")
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        return files[name].response(request)

    return router
