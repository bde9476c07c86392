"""Celery's log records about a broker that is away: one WARNING line each, in place of a traceback.

Knows Celery's loggers; neither handlers nor formats.
"""

import logging

from celery import Celery
from celery.exceptions import Reject

LOGGERS = (  # of records about messages and connections
    "celery.app.trace",
    "celery.bootsteps",
    "celery.worker.consumer.consumer",
    "celery.worker.loops",
    "celery.worker.request",
)


class BrokerErrorFilter(logging.Filter):
    """Turns records of lost connections, and of tickets that go back, into warnings without tracebacks.

    Nothing is to be done then: the broker delivers the ticket again, and its job's row decides what happens. Records of
    other errors stay as they are.

    Args:
        expected: exceptions that mean a lost connection, or a ticket that goes back.
    """

    def __init__(self, expected: tuple[type[BaseException], ...]) -> None:
        super().__init__()
        self._expected = expected

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        if kind is not None and issubclass(kind, self._expected):
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
            record.exc_info = record.exc_text = None
        return True


def quieten(app: Celery) -> None:
    """Have Celery and kombu log warnings and errors only, and lost connections without tracebacks."""
    for name in ("celery", "kombu"):  # a line for each ticket, and one for each attempt to connect
        logging.getLogger(name).setLevel(logging.WARNING)
    lost = [kind for kind in app.connection_for_read().connection_errors if kind is not KeyError]  # a defect of kombu
    shortened = BrokerErrorFilter((*lost, Reject))
    for name in LOGGERS:
        logging.getLogger(name).addFilter(shortened)
