"""Number formats of the graphs. Imports no PyTorch, so that a wrong choice is refused at once.

The residual stream, norms, modulation, rotary embedding and final layer are FP32 in every plan. A precision sets the
format of the large matrix products and of attention, and an accumulation the format in which FP16 products are summed.
`export.precision.fp16` makes FP16 safe.
"""

from collections.abc import Sequence

from engine.errors import BuildError
from engine.plan.manifest import Accumulation, Flavor, GraphName, Precision

TURING = "7.5"  # the only supported compute capability without BF16


def graph_precisions(
    precision: Precision, flavor: Flavor, capabilities: Sequence[str] = ()
) -> dict[GraphName, Precision]:
    """Return the precision of each graph with weights for the precision on the command line.

    The VAE does not support FP16: nothing bounds the outputs of its convolutions, and Z-Image-Turbo's leave the range.
    It uses BF16, which has the range of FP32, or FP32 where BF16 is missing: in ONNX Runtime on a CPU and on Turing.

    Args:
        capabilities: compute capabilities of the GPUs to build for.

    Raises:
        BuildError: BF16 where it is missing.
    """
    wide: Precision = "fp32" if flavor == "onnx" or TURING in capabilities else "bf16"
    if precision == "bf16" and wide == "fp32":
        where = "ONNX Runtime on a CPU" if flavor == "onnx" else f"compute capability {TURING}"
        raise BuildError(f"--bf16: {where} has no BF16; use --fp16 or --fp32")
    vae = wide if precision == "fp16" else precision
    return {"prompt_encoder": precision, "denoiser": precision, "vae_decoder": vae, "vae_encoder": vae}


def require_accumulation(accumulation: Accumulation, precision: Precision, flavor: Flavor) -> None:
    """Raise BuildError if products are to be summed in FP16 where they are always summed in FP32."""
    if accumulation == "fp16" and precision != "fp16":
        raise BuildError(f"--accumulate fp16 needs --fp16; products of --{precision} are always summed in FP32")
    if accumulation == "fp16" and flavor == "onnx":
        raise BuildError("--accumulate fp16 needs --flavor tensorrt or rtx; ONNX Runtime on a CPU always sums in FP32")
