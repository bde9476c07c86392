"""The finishing of images in threads."""

import queue
import threading

import numpy as np
import pytest
from fakes.loop import MANIFEST, FakeLoop

from engine.request import ImageFormat, ImageRequest
from engine.scheduler.events import Denoised, Stepped
from server.worker import finisher
from server.worker.finisher import ImageFinisher
from server.worker.messages import Finished, FromWorker, PreviewReady


def test_slow_preview_is_sent_before_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: queue.Queue[FromWorker] = queue.Queue()
    image_sent = threading.Event()
    project = finisher.preview.project

    def send(message: FromWorker) -> None:
        sent.put(message)
        image_sent.set()

    def slow_project(*arguments: object) -> np.ndarray:
        image_sent.wait(0.3)  # time in which the image could overtake
        return project(*arguments)

    monkeypatch.setattr(finisher.preview, "project", slow_project)
    loop = FakeLoop()
    loop.submit("a", ImageRequest("a cat", 64, 64, num_inference_steps=2), previews=1)
    images = ImageFinisher(MANIFEST, send)
    while not loop.is_idle:
        for event in loop.step():
            match event:
                case Stepped(key, done, _, estimate) if estimate is not None:
                    images.show_preview(key, done, estimate, ImageFormat())
                case Denoised(key, pending):
                    images.finish(key, pending, ImageFormat())
    assert [type(sent.get(timeout=20)) for _ in range(2)] == [PreviewReady, Finished]
    images.close()
