"""Middleware that serves the page at `/` beside the endpoints.

Knows paths, origins and headers; not the page. NiceGUI, the page's toolkit, takes half a second to import: the first
visitor waits for it, the start of the server does not.
"""

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.access import Authenticator
from server.api.errors import ApiError
from server.jobs.service import JobService

PATH = "/"
MAX_PATH = 255  # bytes, the limit for names of files
PARTS = ("/_nicegui/", "/_nicegui_ws/")  # the page's scripts and styles, and its socket
HEADERS = {  # the toolkit needs eval for its scripts; the policy keeps them from reaching other hosts
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
}
CROWDED = ApiError(
    503, "Too many pages are being opened; try again in 60 s.", code="page_crowded", headers={"retry-after": "60"}
)


class PageMount:
    """Answers requests for the page and passes on all others. One per process: the toolkit keeps state in modules."""

    def __init__(self, app: ASGIApp, jobs: JobService, authenticator: Authenticator) -> None:
        self._app, self._jobs, self._authenticator = app, jobs, authenticator
        self._page: FastAPI | None = None
        self._is_crowded: Callable[[], bool] = lambda: False
        self._loading = asyncio.Lock()
        self._running = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "lifespan":
                async with self._running:
                    await self._app(scope, receive, send)
            case "http" if scope["path"] == PATH and scope["method"] == "GET":
                page = await self._loaded()
                answer = CROWDED.response() if self._is_crowded() else page
                await answer(scope, receive, _with_headers(send))
            case "http" | "websocket" if scope["path"].startswith(PARTS):
                if _is_foreign(Headers(scope=scope)):
                    await _refuse(scope, receive, send)
                elif _is_unopenable(scope["path"]):
                    await self._app(scope, receive, send)  # which answers with 404
                else:
                    await (await self._loaded())(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _loaded(self) -> FastAPI:
        async with self._loading:
            if self._page is None:
                module = await run_in_threadpool(import_module, "server.page.page")
                self._is_crowded = module.is_crowded
                page: FastAPI = module.create(self._jobs, self._authenticator)
                await self._running.enter_async_context(page.router.lifespan_context(page))
                self._page = page
            return self._page


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return send_with_headers


def _is_foreign(headers: Headers) -> bool:
    """Return True if a page of another site sent a request, as Go's `http.CrossOriginProtection` does.

    Browsers send `Sec-Fetch-Site` only with TLS and not for WebSockets; otherwise `Origin` is compared with `Host`.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:  # not a browser
        return False
    try:
        host = urlsplit(origin).netloc
    except ValueError:  # as with http://[
        return True
    return host not in (headers.get("host"), headers.get("x-forwarded-host"))


def _is_unopenable(path: str) -> bool:
    """Return True if the system would refuse to open a path; the toolkit opens every path that it gets."""
    return "\0" in path or len(path.encode()) > MAX_PATH


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        closing: Message = {"type": "websocket.close", "code": 1008}
        await send(closing)
        return
    error = ApiError(403, "Other sites must not use the page of this server.", code="foreign_origin")
    await error.response()(scope, receive, send)
