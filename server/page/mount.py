"""The page at `/` beside the endpoints: which requests are for it, and who may send them.

Knows paths, origins and headers; not what is on the page. Its toolkit, NiceGUI, takes half a second to import: the
first visitor waits for that, the server's start does not.
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
MAX_PATH = 255  # bytes, as many as a file's name may have
PARTS = ("/_nicegui/", "/_nicegui_ws/")  # the page's scripts and styles, and its socket
HEADERS = {  # the toolkit evaluates scripts of its own; whatever they do, nothing comes from or leaves for another host
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


CROWDED = ApiError(
    503, "Too many pages are being opened; try again in a minute.", code="page_crowded", headers={"retry-after": "60"}
)


class PageMount:
    """Answers what is for the page, and passes on all else. One per process: the toolkit keeps its state in modules."""

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
                elif _names_no_file(scope["path"]):
                    await self._app(scope, receive, send)  # which has no such path
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
    """Whether another site's page sent it: what the browser says, or where it says nothing, `Origin` against `Host`.

    As Go's `http.CrossOriginProtection`. Browsers leave `Sec-Fetch-Site` out where there is no TLS, and on WebSockets.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:  # no browser
        return False
    try:
        host = urlsplit(origin).netloc
    except ValueError:  # as with http://[
        return True
    return host not in (headers.get("host"), headers.get("x-forwarded-host"))


def _names_no_file(path: str) -> bool:
    """Whether the system would refuse to look for it: the toolkit asks for what it is sent."""
    return "\0" in path or len(path.encode()) > MAX_PATH


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        closing: Message = {"type": "websocket.close", "code": 1008}
        await send(closing)
        return
    error = ApiError(403, "The page of this server is not for other sites to use.", code="foreign_origin")
    await error.response()(scope, receive, send)
