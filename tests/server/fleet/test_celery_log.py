"""Celery's log while a broker is lost: a line, and no traceback; other errors as they are."""

import logging
import threading

import pytest
from fakes.jobs import job
from fakes.services import Redis, new
from fakes.waiting import wait_until

from server.fleet.messaging import celery_log
from server.fleet.messaging.celery_app import create_celery, queues_of_host, send_ticket
from server.fleet.messaging.ticket_worker import TicketWorker

FLEET = "log"


@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")  # of a lost connection
def test_lost_broker_and_refused_ticket_are_warnings_without_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    held: list[str] = []
    go_on = threading.Event()

    def hold(job_id: str) -> bool:
        held.append(job_id)
        return len(held) > 1 and go_on.wait(20)  # the first time the ticket goes back

    def logged(text: str) -> list[logging.LogRecord]:
        return [record for record in caplog.records if text in record.getMessage()]

    with new(Redis) as broker:
        app = create_celery(broker.fresh_url(), FLEET, queues_of_host(FLEET, "m", "p", ()))
        worker = TicketWorker(app, "host", hold)
        worker.start(1)
        assert send_ticket(app, job(model="m"))
        wait_until(lambda: len(held) == 2)
        broker.kill()
        go_on.set()
        wait_until(lambda: bool(logged("Couldn't ack")))
        broker.start()
        wait_until(lambda: worker.is_connected, 60)
        worker.stop(20)
        app.close()
    assert {record.levelname for record in logged("Couldn't ack")} == {"WARNING"}
    assert {record.levelname for record in logged("this host takes no more jobs")} == {"WARNING"}
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


def test_other_errors_keep_their_level_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    celery_log.quieten(create_celery("redis://127.0.0.1:1/0", FLEET))
    logger = logging.getLogger("celery.worker.request")
    for error in (KeyError("a"), ZeroDivisionError()):
        logger.critical("unexpected", exc_info=error)
    logger.critical("expected", exc_info=ConnectionResetError())
    assert [(record.levelname, record.exc_info is None) for record in caplog.records] == [
        ("CRITICAL", False),
        ("CRITICAL", False),
        ("WARNING", True),
    ]
