"""Packets that a browser may send to the page's socket: Socket.IO's, in the form that the toolkit's script writes.

The toolkit logs a traceback for each packet of another form, and anybody can send them. Knows text; not the page.
"""

import re
import time
from collections.abc import Callable
from typing import Literal

import msgspec
from starlette.types import Message, Receive

CONNECT, DISCONNECT, PONG = "40", "41", "3"
EVENT = re.compile(r"42[0-9]{0,9}(?=\[)")  # perhaps with the number of an acknowledgement
MAX_EVENTS = 2000  # of a socket in INTERVAL; a held key sends 30 a second
INTERVAL = 10.0  # seconds

Event = tuple[Literal["handshake", "event", "javascript_response", "ack", "log"], dict[str, object]]


class PacketCheck:
    """Check of the packets of one socket, in their order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_connected = False
        self._events, self._since = 0, clock()

    def is_valid(self, packet: str | None) -> bool:
        """Return True if the toolkit may read a packet; None is a binary one."""
        if packet == PONG:
            return True
        if packet == CONNECT:  # a second one would make another session
            was_connected, self._is_connected = self._is_connected, True
            return not was_connected
        if packet == DISCONNECT:
            return self._is_connected
        return packet is not None and self._is_connected and self._is_in_time() and _is_event(packet)

    def _is_in_time(self) -> bool:
        now = self._clock()
        if now - self._since >= INTERVAL:
            self._events, self._since = 0, now
        self._events += 1
        return self._events <= MAX_EVENTS


def checked(receive: Receive) -> Receive:
    """Return the messages of a socket up to the first invalid packet, after which the socket seems to be closed."""
    check = PacketCheck()

    async def receive_valid() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive" and not check.is_valid(message.get("text")):
            return {"type": "websocket.disconnect", "code": 1008}
        return message

    return receive_valid


def _is_event(packet: str) -> bool:
    head = EVENT.match(packet)
    if head is None:
        return False
    try:
        msgspec.json.decode(packet[head.end() :], type=Event)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
