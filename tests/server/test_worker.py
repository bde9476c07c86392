"""The process that generates, without a process."""

import socket

from fakes.loop import MANIFEST, FakeLoop

from engine.request import ImageFormat, ImageRequest
from server.worker.messages import Cancel, Generate
from server.worker.worker import Worker


def test_what_was_called_off_before_it_was_read_is_not_begun() -> None:
    class Watched(FakeLoop):
        def submit(self, key: str, request: ImageRequest, previews: int = 0) -> None:
            begun.append(key)
            super().submit(key, request, previews)

    begun: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(Watched(), MANIFEST, theirs)
        for message in (*(Generate(key, ImageRequest("a cat"), ImageFormat()) for key in "ab"), Cancel("a")):
            worker._connection.put(message)
        assert worker._handle_messages()
    assert begun == ["b"]
