"""An image whose decoding is enqueued. Knows no batches."""

import threading
from dataclasses import replace

from engine.backends.memory import TimingEvent
from engine.errors import ZImageError
from engine.graph_runner import Decoded
from engine.images.generated import GeneratedImage
from engine.images.mask_crop import paste_back
from engine.scheduler.sample import Sample


class PendingImage:
    """An image whose steps are over and whose decoding is enqueued. Any thread may finish it.

    Attributes:
        sample: the image before it was decoded.
    """

    def __init__(self, sample: Sample, decoded: Decoded, started: TimingEvent) -> None:
        self.sample, self._decoded, self._started = sample, decoded, started
        self._outcome: GeneratedImage | ZImageError | None = None
        self._decoding: float | None = None
        self._lock = threading.Lock()
        self._timing = threading.Lock()  # apart: the loop must not wait for pixels

    def decoding_seconds(self) -> float:
        """Return the device time of the decoding, which must be over."""
        with self._timing:  # the loop reuses the events once it has the time, and another thread may be reading them
            if self._decoding is None:
                self._decoding = self._started.seconds_until(self._decoded.done)
            return self._decoding

    def settle(self) -> None:
        """Copy the pixels out of the buffers, unless that has been done."""
        with self._lock:
            if self._outcome is None:
                try:
                    self._outcome = self._image()
                except ZImageError as error:
                    self._outcome = error

    def finish(self) -> GeneratedImage:
        """Wait for the image.

        Raises:
            NonFiniteOutput: the values hold NaN or Inf.
            DeviceError: the GPU failed.
        """
        self.settle()
        if isinstance(self._outcome, ZImageError):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def _image(self) -> GeneratedImage:
        sample = self.sample
        self._decoded.image.wait()
        seconds = replace(sample.seconds, vae_decoder=self.decoding_seconds())
        pixels = self._decoded.wait()
        if sample.init_image is not None:
            pixels = paste_back(pixels, sample.init_image)
        return GeneratedImage(
            pixels, sample.request.seed, sample.num_inference_steps, sample.branches[0].prompt, seconds
        )
