"""Format of log lines, with the id of the request that they belong to. Knows nothing of what is logged."""

import logging
from contextvars import ContextVar
from typing import Literal

LogFormat = Literal["text", "json"]

MAX_MESSAGE = 1000  # characters; a client chooses parts of some messages

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the current request


def configure(log_format: LogFormat, level: str, *, process: str) -> None:
    """Send all further log lines to stderr in a format.

    Args:
        process: "server" or "worker"; part of each line.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_with_request_id)
    handler.addFilter(_on_one_line)
    handler.setFormatter(_formatter(log_format, process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _formatter(log_format: LogFormat, process: str) -> logging.Formatter:
    if log_format == "text":
        return _Text(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s")
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "{levelname}{name}{message}{request_id}",
        style="{",
        timestamp="time",
        rename_fields={"levelname": "level", "name": "logger"},
        static_fields={"process": process},
    )


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        """Append the request id, if there is one."""
        line = super().formatMessage(record)
        record_id = getattr(record, "request_id", None)
        return line if record_id is None else f"{line} [{record_id}]"


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = getattr(record, "request_id", None) or request_id.get()
    return True


def _on_one_line(record: logging.LogRecord) -> bool:
    """Cut a long message, and escape what could look like another line; tracebacks are not part of the message."""
    message = record.getMessage()
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}... ({len(message)} characters)"
    record.msg, record.args = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message), ()
    return True
