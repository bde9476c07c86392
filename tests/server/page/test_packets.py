"""Which packets the page's socket passes on to the toolkit."""

from server.page.packets import INTERVAL, MAX_EVENTS, PacketCheck

EVENT = '42["event",{"client_id":"1"}]'


def connected(now: float = 100.0) -> PacketCheck:
    check = PacketCheck(clock=lambda: now)
    assert check.is_valid("40")
    return check


def test_browser_s_packets_are_valid() -> None:
    check = connected()
    for packet in ("3", EVENT, '420["handshake",{"client_id":"1"}]', '42["ack",{"next_message_id":1}]', "41"):
        assert check.is_valid(packet), packet


def test_event_before_the_connection_and_a_second_connection_are_invalid() -> None:
    assert not PacketCheck().is_valid(EVENT)
    assert not PacketCheck().is_valid("41")
    assert not connected().is_valid("40")


def test_more_events_than_the_limit_in_an_interval_are_invalid() -> None:
    now = 100.0
    check = PacketCheck(clock=lambda: now)
    check.is_valid("40")
    for _ in range(3):
        assert all(check.is_valid(EVENT) for _ in range(MAX_EVENTS))
        assert not check.is_valid(EVENT)
        now += INTERVAL
