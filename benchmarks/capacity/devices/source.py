"""Sources of the seconds of a device: the roofline of a named GPU, or the report of a measurement.

All prompts have one length, that of the measurement if it is known.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.capacity.devices.gpus import Gpu
from benchmarks.capacity.devices.measured_times import MeasuredTimes
from benchmarks.capacity.devices.roofline_times import PROMPT_TOKENS, RooflineTimes
from benchmarks.simulation.scenario import Costs, ServiceTimes
from engine.errors import InvalidRequest
from engine.size import Size

PNG_SECONDS = 0.023  # of a PNG of one megapixel on one thread of an AMD EPYC (`zimage-bench encode`)
HTTP_SECONDS = 0.006  # that HTTP adds to an image, AMD EPYC (`zimage-bench http`)
LORA_SECONDS = 2.5  # of the host for the 11 GB of an FP16 change on 8 cores (`zimage-bench lora-swap`)
MEGAPIXEL = 1e6
DEFAULT_STEPS = 8  # of Z-Image-Turbo and of z-image-nano


@dataclass(frozen=True, slots=True)
class Source:
    """Seconds of one kind of device.

    Attributes:
        name: of the GPU, or of the report's file.
        origin: where the seconds are from, as a sentence.
        is_measured: False if they follow from a data sheet.
        prompt_length: padded tokens of every prompt.
        costs: seconds beside those of the device.
        watts: power limit of the device; None if it is not known.
        is_gpu: False for a CPU, which does not run passes ahead.
    """

    name: str
    origin: str
    is_measured: bool
    times: ServiceTimes
    costs: Costs
    prompt_length: int = PROMPT_TOKENS
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
        hardware = report["hardware"]
        device = ", ".join(gpu["name"] for gpu in hardware.get("gpus", [])) or f"{hardware['cpu']} (CPU)"
        if report["benchmark"] == "latency":
            times, overhead = MeasuredTimes.of_latency(report), HTTP_SECONDS
        else:
            times = MeasuredTimes.of_load(report, DEFAULT_STEPS)
            overhead = times.overhead
        area, _ = times.passes[-1]
        return cls(
            path.name,
            f"Measured with zimage-bench {report['benchmark']} on {device}: {path.name}.",
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
            is_gpu="gpus" in hardware,
        )

    def alone(self, size: Size, steps: int = DEFAULT_STEPS) -> float:
        """Return the seconds of one image that is alone on its device."""
        times, length = self.times, self.prompt_length
        device = times.prompt_encoder_seconds(length) + steps * times.pass_seconds(size, 1, length)
        device += steps * self.costs.step + times.decode_seconds(size)
        return self.costs.request + device + self.costs.file * size.area / MEGAPIXEL + self.costs.response


def read_report(path: Path) -> Mapping[str, Any]:
    """Read the report of a benchmark, a JSON file or saved output whose last line it is.

    Raises:
        InvalidRequest: it is no report of latency or load.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        report = json.loads(text if text.startswith("{") else text.rsplit("\n", 1)[-1])
        is_known = report["benchmark"] in ("latency", "load")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{path} is no report of zimage-bench: {error}", "service_times") from error
    if not is_known:
        raise InvalidRequest(
            f"{path} is a report of zimage-bench {report['benchmark']}, which does not measure service times; "
            "give one of latency or load",
            "service_times",
        )
    return dict(report)
