"""Tickets on their way to a broker that is slow, away or broken."""

import threading

import pytest
from fakes.jobs import job

from server.fleet.messaging import ticket_sender
from server.fleet.messaging.ticket_sender import TicketSender
from server.jobs.job import Job


def test_tickets_beyond_the_bound_are_dropped_without_waiting() -> None:
    goes_on, sent = threading.Event(), []

    def send(ticket: Job) -> bool:
        assert goes_on.wait(10)
        sent.append(ticket.id)
        return True

    sender = TicketSender(send)
    sender.start()
    for number in range(ticket_sender.MAX_WAITING + 50):
        sender.put(job(id=f"{number}"))
    goes_on.set()
    sender.close(timeout=10)
    assert ticket_sender.MAX_WAITING <= len(sent) <= ticket_sender.MAX_WAITING + 1
    assert sent[:3] == ["0", "1", "2"]


def test_failure_ends_neither_the_thread_nor_later_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticket_sender, "REST_SECONDS", 0.0)
    tried = []

    def send(ticket: Job) -> bool:
        tried.append(ticket.id)
        if ticket.id == "broken":
            raise RuntimeError("no such exchange")
        return ticket.id != "away"

    sender = TicketSender(send)
    sender.start()
    for name in ("broken", "away", "sent"):
        sender.put(job(id=name))
    sender.close(timeout=10)
    assert tried == ["broken", "away", "sent"]


def test_tickets_after_a_failure_do_not_wait_for_the_broker_one_by_one() -> None:
    tried = []

    def send(ticket: Job) -> bool:
        tried.append(ticket.id)
        return False

    sender = TicketSender(send)
    sender.start()
    for number in range(100):
        sender.put(job(id=f"{number}"))
    sender.close(timeout=10)
    assert tried == ["0"]
