"""Middleware that serves the page at `/` beside the endpoints.

Knows paths, origins and headers; not the page. NiceGUI, the page's toolkit, takes half a second to import: the first
visitor waits for it, the start of the server does not.
"""

import asyncio
import gc
import logging
from collections.abc import MutableMapping
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.plan.guide import Guide
from server.api.access import Authenticator
from server.api.errors import ECHO, ApiError, refuse
from server.api.public_address import SCOPE_KEY, PublicAddress, without_default_port
from server.jobs.service import JobService
from server.page.address_check import ADVICE, own_hosts
from server.page.packets import checked

log = logging.getLogger(__name__)

PATH = "/"
MAX_PATH = 255  # bytes, the limit for names of files
FILES = "/_nicegui/"  # the page's scripts and styles
SOCKET = "/_nicegui_ws/socket.io/"
HEADERS = {  # the toolkit needs eval for its scripts; the policy keeps them from reaching other hosts
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
}
NO_NAVIGATION = ApiError(403, "This address is a page; open it in a tab of a browser.", code="not_a_navigation")


def is_page(path: str) -> bool:
    """Return True for the paths of the page and its parts."""
    return path == PATH or path.startswith((FILES, SOCKET))


class PageMount:
    """Answers requests for the page and passes on all others. One per process: the toolkit keeps state in modules."""

    def __init__(self, app: ASGIApp, jobs: JobService, authenticator: Authenticator, guide: Guide) -> None:
        self._app, self._jobs, self._authenticator, self._guide = app, jobs, authenticator, guide
        self._page: FastAPI | None = None
        self._loading = asyncio.Lock()
        self._running = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "lifespan":
                async with self._running:
                    await self._app(scope, receive, send)
            case "http" if scope["path"] == PATH and scope["method"] == "GET":
                is_navigation = _is_navigation(Headers(scope=scope))
                answer = await self._loaded() if is_navigation else NO_NAVIGATION.response()
                await answer(scope, receive, _with_headers(send))
            case "http" if scope["path"].startswith(FILES) and not _is_unopenable(scope["path"]):
                await self._serve_part(scope, receive, send)
            case "websocket" if scope["path"] == SOCKET:
                await self._serve_part(scope, checked(receive), send)
            case _:
                await self._app(scope, receive, send)

    async def _serve_part(self, scope: Scope, receive: Receive, send: Send) -> None:
        if error := _refusal(Headers(scope=scope), scope[SCOPE_KEY]):
            log.warning("%s", error)
            await refuse(error, scope, receive, send)
        else:
            await (await self._loaded())(scope, receive, send)

    async def _loaded(self) -> FastAPI:
        async with self._loading:
            if self._page is None:
                module = await run_in_threadpool(import_module, "server.page.page")
                page: FastAPI = module.create(self._jobs, self._authenticator, self._guide)
                await self._running.enter_async_context(page.router.lifespan_context(page))
                self._page = page
                gc.freeze()  # as in `server.serving`
            return self._page


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return send_with_headers


def _is_navigation(headers: Headers) -> bool:
    """Return False if a page of any site loads this one as an image, a script or the like: it would never connect.

    Browsers send `Sec-Fetch-Dest` only with TLS and to this machine.
    """
    destination = headers.get("sec-fetch-dest")
    if destination in ("iframe", "frame"):
        return headers.get("sec-fetch-site") == "same-origin"
    return destination in (None, "document") and not headers.get("accept", "").startswith("image/")


def _refusal(headers: Headers, address: PublicAddress) -> ApiError | None:
    """Return the error if a page of another site sent a request, as Go's `http.CrossOriginProtection` does.

    Browsers send `Sec-Fetch-Site` only with TLS and not for WebSockets; otherwise the host in `Origin` is compared.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return None if site in ("same-origin", "none") else _foreign(f"Sec-Fetch-Site: {site[:ECHO]!r}", address)
    if origin is None:  # not a browser
        return None
    try:
        parts = urlsplit(origin)
    except ValueError:  # as with http://[
        return _foreign(f"Origin: {origin[:ECHO]!r}", address)
    is_own = without_default_port(parts.netloc, parts.scheme) in own_hosts(headers, address, parts.scheme)
    return None if is_own else _foreign(f"Origin: {origin[:ECHO]!r}", address)


def _foreign(got: str, address: PublicAddress) -> ApiError:
    return ApiError(
        403,
        f"Other sites must not use the page of this server: got {got}, expected {address.root}. {ADVICE}",
        code="foreign_origin",
    )


def _is_unopenable(path: str) -> bool:
    """Return True if the system would refuse to open a path; the toolkit opens every path that it gets."""
    return "\0" in path or len(path.encode()) > MAX_PATH
