"""Bounds on what visitors can make the page's toolkit do: keep pages, and write to the log. Knows NiceGUI; no jobs."""

import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from nicegui import Client, core
from nicegui import app as toolkit
from socketio.exceptions import ConnectionRefusedError

from server.api import errors

log = logging.getLogger(__name__)

MAX_WAITING = 256  # pages without a connection, of 0.2 MB each


def guard_toolkit() -> None:
    """Keep visitors from filling the log: the toolkit writes a traceback for each event that it cannot handle.

    It also offers long polling, which keeps a session for each request.
    """
    toolkit.add_exception_handler(404, _not_found)  # the toolkit's own keeps a page for each in memory
    handlers = core.sio.handlers["/"]
    for name in ("connect", "handshake", "event", "javascript_response", "ack"):
        core.sio.on(name, _without_errors(handlers[name]))
    core.sio.on("log", lambda *_: None)  # the toolkit's handler logs whatever a visitor sends
    core.sio.eio.transports = toolkit.config.socket_io_js_transports = ["websocket"]
    logging.getLogger("nicegui").addFilter(_shorten_traceback)


def drop_waiting_pages() -> None:
    """Delete the oldest pages without a connection if there are too many; a browser that comes late reloads its page.

    Anybody can open pages and never connect them; newcomers must not be refused for that.
    """
    waiting = [client for client in Client.instances.values() if not client.has_socket_connection]
    for client in waiting[:-MAX_WAITING]:
        client.delete()


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    return errors.translate(request, error).response()


def _without_errors(handle: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a handler that answers False to events which the toolkit cannot handle, such as those of deleted pages."""

    async def handle_quietly(*args: Any) -> Any:
        try:
            answer = handle(*args)
            return await answer if inspect.isawaitable(answer) else answer
        except ConnectionRefusedError:
            raise
        except Exception as error:  # noqa: BLE001
            log.debug("The page's socket got an invalid event: %r", error)
            return False

    return handle_quietly


def _shorten_traceback(record: logging.LogRecord) -> bool:
    """Replace the traceback of an error in the page by one line: a visitor may send values that no input has."""
    if record.exc_info and record.exc_info[1] and not log.isEnabledFor(logging.DEBUG):
        error = record.exc_info[1]  # its text may hold what the visitor sent
        place = traceback.extract_tb(error.__traceback__)[-1]
        record.msg, record.exc_info = "An event of the page failed with %s in %s, line %d", None
        record.args = (type(error).__name__, place.filename, place.lineno)
    return True
