"""An image whose last step is over, and whose pixels are on their way. Knows no batches."""

import threading
import time
from dataclasses import replace

from engine.backends.memory import TimingEvent
from engine.errors import ZImageError
from engine.pipeline import Decoded, GeneratedImage
from engine.scheduler.sample import Sample
from engine.size import Size


class PendingImage:
    """An image of which everything is enqueued. Any thread may finish it, while others are being generated."""

    def __init__(self, sample: Sample, decoded: Decoded, started: TimingEvent) -> None:
        self._sample, self._decoded, self._started = sample, decoded, started
        self._outcome: GeneratedImage | ZImageError | None = None
        self._decoding: float | None = None
        self._lock = threading.Lock()

    @property
    def size(self) -> Size:
        return self._sample.size

    def decoding_seconds(self) -> float:
        """What the decoding kept the engine busy, whoever finishes the image when. It must be over."""
        if self._decoding is None:  # events are recorded anew later, so the first answer is kept
            self._decoding = self._started.seconds_until(self._decoded.decoded)
        return self._decoding

    def settle(self) -> None:
        """Takes the pixels out of the buffers, if that has not been done."""
        with self._lock:
            if self._outcome is None:
                try:
                    self._outcome = self._image()
                except ZImageError as error:
                    self._outcome = error

    def finish(self) -> GeneratedImage:
        """Waits for the image.

        Raises:
            NonFiniteOutput: the model left the range of its number format.
            DeviceError: the GPU failed.
        """
        self.settle()
        if isinstance(self._outcome, ZImageError):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def _image(self) -> GeneratedImage:
        sample = self._sample
        self._decoded.arrive()
        decoding = self.decoding_seconds()
        started = time.perf_counter()
        pixels = self._decoded.wait()
        seconds = replace(sample.seconds, vae_decoder=decoding, pixels=time.perf_counter() - started)
        return GeneratedImage(pixels, sample.request.seed, sample.steps, sample.branches[0].prompt, seconds)
