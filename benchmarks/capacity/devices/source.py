"""Sources of the seconds of a device: the roofline of a named GPU, or the report of a measurement.

All prompts have one length, that of the measurement if it is known.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.capacity.devices.gpus import Gpu
from benchmarks.capacity.devices.measured_times import MeasuredTimes
from benchmarks.capacity.devices.reports import LoadReport, Server, read_report
from benchmarks.capacity.devices.roofline_times import PROMPT_TOKENS, RooflineTimes
from benchmarks.simulation.scenario import Costs, ServiceTimes
from engine.size import Size

PNG_SECONDS = 0.023  # of a PNG of one megapixel on one thread of an AMD EPYC (`zimage-bench encode`)
HTTP_SECONDS = 0.006  # that HTTP adds to an image, AMD EPYC (`zimage-bench http`)
LORA_SECONDS = 2.5  # of the host for the 11 GB of an FP16 change on 8 cores (`zimage-bench lora-swap`)
MEGAPIXEL = 1e6
STEPS = 8  # of Z-Image-Turbo and of z-image-nano


@dataclass(frozen=True, slots=True)
class Source:
    """Seconds of one kind of device.

    Attributes:
        name: of the GPU, or of the report's file.
        origin: where the seconds are from, as a sentence.
        is_measured: False if they follow from a data sheet.
        prompt_length: padded tokens of every prompt.
        costs: seconds beside those of the device.
        steps, guidance: the model's own, of requests that do not say theirs.
        watts: power limit of the device; None if it is not known.
        is_gpu: False for a CPU, which does not run passes ahead.
    """

    name: str
    origin: str
    is_measured: bool
    times: ServiceTimes
    costs: Costs
    prompt_length: int = PROMPT_TOKENS
    steps: int = STEPS
    guidance: float = 0.0
    watts: float | None = None
    is_gpu: bool = True

    @classmethod
    def of_gpu(cls, gpu: Gpu, reached: float, *, fp16_sums: bool = False) -> Self:
        """Return the times of full-size Z-Image-Turbo on a GPU that reaches a share of its roofline."""
        summed = ", sums in FP16" if fp16_sums else ""
        return cls(
            gpu.name,
            f"Simulated from the roofline of {gpu.documents}{summed}, {100 * reached:g} % of it reached; not measured.",
            False,
            RooflineTimes(gpu.rates(fp16_sums=fp16_sums), reached),
            Costs(request=HTTP_SECONDS / 2, response=HTTP_SECONDS / 2, file=PNG_SECONDS, lora_change=LORA_SECONDS),
            watts=gpu.watts,
        )

    @classmethod
    def of_report(cls, path: Path) -> Self:
        """Read a report of `zimage-bench latency` or `zimage-bench load`.

        Raises:
            InvalidRequest: it is another file, or has no times of zimage-trt.
        """
        report = read_report(path)
        device = ", ".join(gpu.name for gpu in report.hardware.gpus) or f"{report.hardware.cpu} (CPU)"
        if isinstance(report, LoadReport):
            benchmark, server = "load", report.figures.target.server or Server()
            steps, guidance = server.num_inference_steps or STEPS, server.default_guidance or 0.0
            times = MeasuredTimes.of_load(report, steps)
            overhead = times.overhead
        else:
            benchmark, times, overhead = "latency", MeasuredTimes.of_latency(report), HTTP_SECONDS
            steps, guidance = report.figures.cases[0].steps, 0.0
        area, _ = times.passes[-1]
        return cls(
            path.name,
            f"Measured with zimage-bench {benchmark} on {device}: {path.name}.",
            True,
            times,
            Costs(
                request=overhead / 2,
                response=overhead / 2,
                file=times.finishing * MEGAPIXEL / area,
                lora_change=LORA_SECONDS,
                step=times.between,
                spread=times.spread,
            ),
            prompt_length=times.prompt_length or PROMPT_TOKENS,
            steps=steps,
            guidance=guidance,
            is_gpu=bool(report.hardware.gpus),
        )

    def alone(self, size: Size, passes: float) -> float:
        """Return the seconds of one image with so many forward passes that is alone on its device."""
        times, length = self.times, self.prompt_length
        device = times.prompt_encoder_seconds(length) + passes * times.pass_seconds(size, 1, length)
        device += passes * self.costs.step + times.decode_seconds(size)
        return self.costs.request + device + self.costs.file * size.area / MEGAPIXEL + self.costs.response
