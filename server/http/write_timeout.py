"""Connections whose other end reads nothing of what it is sent: they end, and let go of what they hold.

Knows transports; no HTTP. Without it an answer that nobody reads stays in memory for as long as its client likes:
closing a transport waits until all of it is sent.
"""

import asyncio
import fcntl
import struct
import termios
from contextlib import suppress
from typing import cast

LOOK_EVERY = 30.0  # seconds; who has taken not a byte from one look to the next is gone


class WriteTimeoutProtocol(asyncio.Protocol):
    """Ends the connection when nothing of what waits to be sent is read, while nothing is added to it."""

    _is_full = False  # so that whoever writes waits
    _unread: int | None = None  # bytes, at the last look; None if some were read since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._look_later(cast(asyncio.Transport, transport))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_full, self._unread = False, None

    def _look_later(self, transport: asyncio.Transport) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look, transport)

    def _look(self, transport: asyncio.Transport) -> None:
        waiting, before = _waiting(transport), self._unread
        is_fixed = self._is_full or transport.is_closing()
        self._unread = waiting if is_fixed and waiting else None
        if self._unread is not None and before is not None and self._unread >= before:
            transport.abort()
        elif waiting or not transport.is_closing():
            self._look_later(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._looking.cancel()


def _waiting(transport: asyncio.Transport) -> int:
    """Bytes that are not sent; with those that the system holds, of which it takes no more until a third are gone."""
    ours, theirs = transport.get_write_buffer_size(), bytes(4)
    if ours:
        with suppress(OSError):
            theirs = fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, theirs)
    return ours + int(struct.unpack("i", theirs)[0])
