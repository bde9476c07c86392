"""The process that draws, without a process."""

import socket

from fakes.loop import MANIFEST, FakeLoop

from engine.request import ImageFormat, PictureRequest
from server.worker.messages import Cancel, Draw
from server.worker.process import Worker


def test_what_was_called_off_before_it_was_read_is_not_begun() -> None:
    class Watched(FakeLoop):
        def submit(self, key: str, request: PictureRequest, previews: int = 0) -> None:
            begun.append(key)
            super().submit(key, request, previews)

    begun: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(Watched(), MANIFEST, theirs)
        for message in (*(Draw(key, PictureRequest("a cat"), ImageFormat()) for key in "ab"), Cancel("a")):
            worker._inbox.put(message)
        assert worker._take_in()
    assert begun == ["b"]
