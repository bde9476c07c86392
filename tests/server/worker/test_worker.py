"""The worker, in this process."""

import socket

from fakes.loop import MANIFEST, FakeLoop

from engine.request import ImageFormat, ImageRequest
from server.worker.messages import Cancel, Generate
from server.worker.worker import Worker


def test_job_cancelled_before_it_is_read_is_not_submitted() -> None:
    class Watched(FakeLoop):
        def submit(self, key: str, request: ImageRequest, previews: int = 0) -> None:
            submitted.append(key)
            super().submit(key, request, previews)

    submitted: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(Watched(), MANIFEST, theirs)
        for message in (*(Generate(key, ImageRequest("a cat"), ImageFormat()) for key in "ab"), Cancel("a")):
            worker._connection.put(message)
        assert worker._handle_messages()
    assert submitted == ["b"]
