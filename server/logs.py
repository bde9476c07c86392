"""Format of log lines, with the id of the request that they belong to, and a limit for lines that repeat.

Knows nothing of what is logged.
"""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]

REPEATS = 10  # lines of one kind that are written in an interval
INTERVAL = 60.0  # seconds
MAX_QUOTED = 200  # characters of a message beside its count
MAX_MESSAGE = 1000  # characters; a client chooses parts of some messages

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the current request


def configure(log_format: LogFormat, level: str, *, process: str) -> None:
    """Send all further log lines to stderr in a format.

    Args:
        process: "server" or "worker"; part of each line.
    """
    handler = LimitedHandler()
    handler.addFilter(_with_request_id)
    handler.addFilter(_on_one_line)
    handler.setFormatter(_formatter(log_format, process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Handler to stderr that writes REPEATS warnings or errors of a kind in an INTERVAL, and only counts the others.

    A kind is a place in the code and a type of exception: their number is bounded, whatever clients send. The count is
    written with the first line of any kind after the interval, or at the end of the process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[object, ...], _Kind] = {}  # seen in the current interval
        self._ends = clock() + INTERVAL

    def emit(self, record: logging.LogRecord) -> None:  # the caller holds the handler's lock
        if self._clock() >= self._ends:
            self._write_counts()
            self._ends = self._clock() + INTERVAL
        if record.levelno < logging.WARNING:
            super().emit(record)
            return
        error = record.exc_info[0] if record.exc_info else None
        key = (record.name, record.pathname, record.lineno, error)
        if key not in self._kinds:
            self._kinds[key] = _Kind(record.name, record.levelno, record.getMessage()[:MAX_QUOTED])
        kind = self._kinds[key]
        kind.count += 1
        if kind.count <= REPEATS:
            super().emit(record)

    def close(self) -> None:
        self._write_counts()
        super().close()

    def _write_counts(self) -> None:
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            if kind.count > REPEATS:
                more = f"... and {kind.count - REPEATS:,} more like this: {kind.first}"
                line = logging.LogRecord(kind.logger, kind.level, __file__, 0, more, None, None)
                line.request_id = None
                super().emit(line)


@dataclass(slots=True)
class _Kind:
    logger: str
    level: int
    first: str  # message; the record would keep the exception's frames in memory
    count: int = 0


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
