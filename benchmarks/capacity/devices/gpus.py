"""GPUs by name, with the figures of their vendor's documents. Knows no workload.

Tensor rates are dense, without structured sparsity, which doubles them on most data sheets. GPUs made for graphics sum
FP16 products in FP16 at twice the rate of FP32 sums; the vendor halves the latter.
"""

from dataclasses import dataclass

from benchmarks.harness.arithmetic import Rates
from engine.errors import InvalidRequest

BYTES = 2  # of FP16


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its data sheet has it.

    Attributes:
        fp16_tflops: dense tensor rate of FP16 products that are summed in FP32, as plans do by default.
        fp16_sums_tflops: the same rate with sums in FP16 (`build-engines --accumulate fp16`).
        bandwidth: of its memory, in GB/s.
        memory: in GB.
        watts: power limit of the board.
        documents: titles of the documents that state these figures.
    """

    name: str
    fp16_tflops: float
    fp16_sums_tflops: float
    bandwidth: float
    memory: int
    watts: int
    documents: str

    def rates(self, *, fp16_sums: bool = False) -> Rates:
        """Return the peak rates of FP16 arithmetic and of memory."""
        return Rates((self.fp16_sums_tflops if fp16_sums else self.fp16_tflops) * 1e12, self.bandwidth * 1e9, BYTES)


ADA = "NVIDIA Ada GPU Architecture whitepaper"
GPUS = (
    Gpu("L4", 121, 121, 300, 24, 72, f"NVIDIA L4 Tensor Core GPU data sheet; {ADA}"),
    # The data sheet has one FP16 rate, which its clock and SMs make that of FP32 sums. Sums in FP16 are not stated.
    Gpu("A10G", 70, 70, 600, 24, 300, "NVIDIA A10G data sheet for AWS, February 2022"),
    Gpu("L40S", 362, 362, 864, 48, 350, "NVIDIA L40S data sheet"),
    Gpu("RTX 4090", 165.2, 330.3, 1008, 24, 450, f"{ADA}, appendix A"),
    Gpu("H100", 989.4, 989.4, 3350, 80, 700, "NVIDIA H100 Tensor Core GPU data sheet, SXM; Hopper whitepaper"),
    Gpu("H200", 989.4, 989.4, 4800, 141, 700, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
)


def gpu(name: str) -> Gpu:
    """Return a GPU by its name, in any case and with or without spaces.

    Raises:
        InvalidRequest: no such GPU is known.
    """
    for known in GPUS:
        if _plain(known.name) == _plain(name).removeprefix("nvidia").removeprefix("geforce"):
            return known
    raise InvalidRequest(
        f"GPU must be one of {', '.join(known.name for known in GPUS)}, got {name!r}; "
        "for another one, measure it with zimage-bench latency and give the report as --service-times",
        "gpu",
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
