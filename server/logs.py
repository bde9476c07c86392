"""What a log line looks like, and which request it belongs to. Knows nothing of what is logged."""

import logging
from contextvars import ContextVar
from typing import Literal

LogFormat = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that is being served


def configure(form: LogFormat, level: str, *, process: str) -> None:
    """Everything from now on goes to stderr in this form.

    Args:
        process: "server" or "worker".
    """
    handler = logging.StreamHandler()
    handler.addFilter(_with_request_id)
    handler.setFormatter(_formatter(form, process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _formatter(form: LogFormat, process: str) -> logging.Formatter:
    if form == "text":
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
        """The id last, where there is one."""
        line = super().formatMessage(record)
        found = getattr(record, "request_id", None)
        return line if found is None else f"{line} [{found}]"


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = getattr(record, "request_id", None) or request_id.get()
    return True
