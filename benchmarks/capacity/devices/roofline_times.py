"""Seconds of full-size Z-Image-Turbo from a roofline: arithmetic and weights over peak rates, times the share reached.

They are computed, not measured. A roofline knows no launch overhead, so it gains nothing from batches as soon as one
image keeps the tensor cores busy, which it does at 512x512 and above.
"""

from dataclasses import dataclass
from functools import cache

from benchmarks.harness.arithmetic import Arithmetic, Rates, Work
from engine.size import Size
from nano.layout import Z_IMAGE_TURBO, configs

PROMPT_TOKENS = 128  # padded; prompts of some 80 words


@cache
def full_size_arithmetic() -> Arithmetic:
    """Return the arithmetic of Z-Image-Turbo, from the configs of its checkpoint."""
    files = configs(Z_IMAGE_TURBO)
    return Arithmetic.of({name: files[f"{name}/config.json"] for name in ("transformer", "text_encoder", "vae")})


@dataclass(frozen=True, slots=True)
class RooflineTimes:
    """Seconds of each stage on a device that reaches a share of its roofline.

    Attributes:
        rates: peak rates of the device.
        reached: share of the roofline, above 0 and at most 1; the same for every stage.
    """

    rates: Rates
    reached: float

    def pass_seconds(self, size: Size, batch: int, prompt_length: int) -> float:
        """Return the seconds of a forward pass of `batch` images with prompts of `prompt_length` padded tokens."""
        return self._seconds(full_size_arithmetic().step(size.height, size.width, prompt_length).batch(batch))

    def prompt_encoder_seconds(self, prompt_length: int) -> float:
        """Return the seconds of encoding one prompt."""
        return self._seconds(full_size_arithmetic().prompt_encoder(prompt_length))

    def decode_seconds(self, size: Size) -> float:
        """Return the seconds of the VAE decoder for one image."""
        return self._seconds(full_size_arithmetic().decode(size.height, size.width))

    def encode_image_seconds(self, size: Size) -> float:
        """Return the seconds of the VAE encoder for the image that an edit begins with."""
        return self._seconds(full_size_arithmetic().encode_image(size.height, size.width))

    def _seconds(self, work: Work) -> float:
        return self.rates.floor(work) / self.reached
