"""Seconds of Z-Image-Turbo that others have published, as a share of the roofline of their GPU.

They justify the share that a roofline's times assume. None is of zimage-trt, which no GPU has run yet.
"""

from dataclasses import dataclass

from benchmarks.capacity.devices.roofline_times import PROMPT_TOKENS, full_size_arithmetic

REACHED = 0.45  # default share of the roofline: the median of the published ones, which are 27 to 58 %


@dataclass(frozen=True, slots=True)
class Published:
    """One published time of an image, end to end, in BF16.

    Attributes:
        tflops: dense peak of the GPU's tensor cores at 16 bits, from its data sheet.
        passes: forward passes of the image.
    """

    gpu: str
    tflops: float
    side: int
    passes: int
    seconds: float
    source: str

    @property
    def share(self) -> float:
        """Return the share of the GPU's peak that the image's arithmetic has reached."""
        work = full_size_arithmetic()
        flops = self.passes * work.step(self.side, self.side, PROMPT_TOKENS).flops
        flops += work.prompt_encoder(PROMPT_TOKENS).flops + work.decode(self.side, self.side).flops
        return flops / (self.tflops * 1e12) / self.seconds


PUBLISHED = (
    Published("H100", 989.4, 1024, 9, 1.930, "SGLang pull request 18762, torch.compile"),
    Published("B200", 2250, 512, 9, 0.155, "unsloth pull request 10537, CUDA graphs"),
    Published("H800", 989.4, 1024, 8, 1 / 0.863, "reported for vLLM-Omni, 0.863 images per second"),
    Published("H100", 989.4, 2048, 8, 5.38, "SGLang pull request 16719"),
    Published("H100", 989.4, 1024, 9, 0.906, "reported for SGLang"),
    Published("L20", 119.5, 1024, 8, 6.71, "reported for diffusers"),
)
