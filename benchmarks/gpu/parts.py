"""The parts of `zimage-bench gpu-check`: the question that each answers, its limit, and the parts that it builds on.

Functions are named, not imported: the command goes on where a library that one part needs is missing.
"""

from dataclasses import dataclass

FIRST = "machine"  # runs with every selection: it finds the device and the flavor for the others

# Builds that are compared: name -> words for the report, and fields of `export.build.BuildOptions`.
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "fp16": ("FP16", {"precision": "fp16"}),
    "bf16": ("BF16", {"precision": "bf16"}),
    "fp16-accumulate-fp16": ("FP16 that accumulates in FP16", {"precision": "fp16", "accumulation": "fp16"}),
}
DEFAULT = "fp16"  # what build-engines makes without options


@dataclass(frozen=True, slots=True)
class Part:
    """One check, in a process of its own.

    Attributes:
        question: the question that the check answers, for the report.
        run: "module:function" below `benchmarks.gpu`; called with Settings and Findings.
        seconds: time limit, of a run with the default of --minutes; longer runs have longer limits.
        needs: parts that must have succeeded.
        needs_gpu: True if the part is left out on a CPU.
        needs_plans: True if the part is left out where no library runs plans on this device.
        variant: build variant that the part is about.
    """

    name: str
    question: str
    run: str
    seconds: int
    needs: tuple[str, ...] = ()
    needs_gpu: bool = False
    needs_plans: bool = False
    variant: str = ""


def _of_variant(variant: str, text: str) -> tuple[Part, ...]:
    build, errors = f"build-{variant}", f"errors-{variant}"
    return (
        Part(
            build,
            f"does {text} build, how long does it take, how large are plan and activations",
            "plans.build:build",
            150,
            ("weights",),
            needs_gpu=variant != DEFAULT,  # ONNX Runtime computes FP16 graphs in FP32 and has no BF16
            needs_plans=True,
            variant=variant,
        ),
        Part(
            errors,
            f"{text}: how far from FP32 at 1024 and 2048 and along the worst rows of V",
            "plans.checks:errors",
            60,
            (build, "reference"),
            needs_plans=True,
            variant=variant,
        ),
        Part(
            f"kernels-{variant}",
            f"{text}: which kernels did attention and the matrix products get",
            "plans.kernels:kernels",
            60,
            (build,),
            needs_gpu=True,
            needs_plans=True,
            variant=variant,
        ),
        Part(
            f"speed-{variant}",
            f"{text}: ms of a step with and without CUDA graph, beside the roofline",
            "plans.checks:speed",
            60,
            (build,),
            needs_plans=True,
            variant=variant,
        ),
    )


# What matters most comes first, since the time may end before the last part: the default plans, the runtime, variants,
# PyTorch, and the rare cases.
PARTS = (
    Part(FIRST, "which GPU, driver and libraries; what rates does the GPU reach", "machine:machine", 60),
    Part("weights", "random weights of the checked layers in BF16", "model.weights:write", 120),
    Part(
        "reference",
        "does our graph equal DiffSynth's modules in FP32 at full width; outputs that later parts compare with",
        "model.precision:reference",
        90,
        ("weights",),
    ),
    *_of_variant(DEFAULT, VARIANTS[DEFAULT][0]),
    Part(
        "plan-memory",
        "GPU memory after loading and after each new context, against the plan",
        "plans.checks:memory",
        60,
        ("build-fp16",),
        needs_gpu=True,
        needs_plans=True,
        variant=DEFAULT,
    ),
    Part(
        "nano",
        "do plans of all graphs of z-image-nano build, compared with DiffSynth on the way",
        "plans.nano:nano",
        180,
        needs_plans=True,
    ),
    Part(
        "self-test",
        "does the self-test find these plans right on this device, how far from its limits, how long does it take",
        "plans.nano:run_probes",
        60,
        ("nano",),
        needs_plans=True,
    ),
    Part(
        "cuda-calls",
        "do memory, copies, streams, events and CUDA graphs behave as the runtime assumes",
        "cuda.calls:calls",
        60,
        needs_gpu=True,
    ),
    Part(
        "cuda-images",
        "does the runtime give numpy's images, with CUDA graphs off, auto and on, in batches, after warm-up",
        "cuda.images:images",
        90,
        needs_gpu=True,
    ),
    Part(
        "cuda-loop",
        "do images of several sizes that join and leave, with previews, guidance, LoRAs, cancellation, stay the same",
        "cuda.loop:loop",
        90,
        needs_gpu=True,
    ),
    Part(
        "cuda-memory",
        "is memory planned, refused, offloaded and freed as stated",
        "cuda.memory:memory",
        60,
        needs_gpu=True,
    ),
    Part(
        "passes",
        "how long do the first, the second and later passes take, and those prepared by warm-up",
        "plans.checks:passes",
        120,
        ("build-fp16",),
        needs_plans=True,
        variant=DEFAULT,
    ),
    Part(
        "products",
        "what does accumulation in FP16 cost in matrix products and attention",
        "model.products:products",
        60,
    ),
    *(part for variant, (text, _) in VARIANTS.items() if variant != DEFAULT for part in _of_variant(variant, text)),
    Part(
        "precision",
        "our graph in PyTorch at FP16, FP16 with FP16 accumulation, and BF16: how far from FP32",
        "model.precision:precision",
        240,
        ("reference",),
    ),
    Part(
        "torch-speed",
        "ms of a step of DiffSynth and of our graph in PyTorch, eager and compiled, beside the roofline",
        "model.torch_speed:speed",
        240,
        ("weights",),
    ),
    Part(
        "refit",
        "how long does a LoRA take to go in and out, and does the image come back bit for bit",
        "plans.refit:refit",
        240,
        ("weights",),
        needs_plans=True,
        variant=DEFAULT,
    ),
    Part(
        "close",
        "does closing while kernels are still being compiled end",
        "plans.checks:close",
        90,
        ("build-fp16",),
        needs_plans=True,
        variant=DEFAULT,
    ),
    Part(
        "cuda-lost",
        "is a lost GPU context noticed, and does the process end without hanging",
        "cuda.memory:lost",
        45,
        needs_gpu=True,
    ),
)
