"""The manifest of a plan directory, as types.

`export` writes `manifest.json`, `engine.plan.directory` reads it. Knows neither files nor the execution of plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.errors import PlanMismatch, UnsupportedShape
from engine.size import Size, SizeLimits, SizeRange

SCHEMA_VERSION = 7
WEIGHTS_RATIO = 1.1  # of a plan's bytes to those of its weights, at most, if it stores each weight once
KERNEL_BYTES = 100_000_000  # in a plan beside its weights, at most
SEQUENCE_MULTIPLE = 32  # prompt and image tokens are each padded to it (Z-Image, SEQ_MULTI_OF)

Flavor = Literal["onnx", "tensorrt", "rtx"]
GraphName = Literal["prompt_encoder", "denoiser", "guidance", "vae_decoder", "vae_encoder", "blend"]
Precision = Literal["fp16", "bf16", "fp32"]
Accumulation = Literal["fp32", "fp16"]

IMAGE_INPUT: tuple[GraphName, ...] = ("vae_encoder", "blend")  # plans have both, or take no images


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a graph. Names in `shape` are dynamic dimensions."""

    name: str
    dtype: str  # a numpy dtype name
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class ProductBound:
    """Bounds of a matrix product in FP16, and the powers of two that scale its input and its output.

    FP16 holds the true value times 2^-shift. Bounds are of true values and follow from the weights alone.
    """

    name: str  # of the weight, or of the part of the attention
    input_bound: float
    input_shift: int
    output_bound: float
    output_shift: int


@dataclass(frozen=True, slots=True)
class RefitWeight:
    """A weight that can be changed at run time, and the place of its base value in the graph's `weights_file`.

    It is the concatenation of the rows of `parts`, times 2^exponent; [in, out] instead of [out, in] if transposed. Rows
    of queries and keys are in the order of the graph: pairs of the rotary embedding are half a head apart.
    """

    name: str  # in the graph, and for TensorRT's refitter
    parts: tuple[str, ...]  # parameters of the checkpoint; none for a scale that is computed from them
    transposed: bool
    exponent: int
    dtype: str  # a numpy dtype name, or bfloat16
    shape: tuple[int, ...]
    offset: int  # bytes


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """An output of a probe as FP32 gives it, and the relative L2 that rounding at the graph's precision costs there."""

    key: str  # in the file of probes
    rounding: float  # of the whole tensor, simulated in the model that the graph was exported from
    row_rounding: float  # of the row that it costs most; a row is a token, or the pixels of one


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs of a graph with the outputs that a device must compute from them."""

    name: str
    inputs: dict[str, str]  # tensor -> key in the file of probes
    outputs: dict[str, ExpectedTensor]


@dataclass(frozen=True, slots=True)
class Graph:
    """One of the graphs: the file that a backend loads and the tensors it binds."""

    file: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: float | None = None  # relative L2 of the ONNX file against DiffSynth in FP32; None if not compared
    weight_bytes: int = 0  # of the exported weights; a plan that stores each weight once is hardly larger
    activation_bytes: tuple[int, ...] = ()  # device memory of a context, by profile; empty if unknown, and for ONNX
    products: tuple[ProductBound, ...] = ()  # FP16 only
    refittable: tuple[RefitWeight, ...] = ()  # of plans built with --refittable
    weights_file: str | None = None  # holds the base values of `refittable`
    probes: tuple[Probe, ...] = ()  # none if the build was told not to compare

    def repeats_weights(self, plan_bytes: int) -> bool:
        """Return True if a plan of this size holds weights twice: it is over a tenth larger than they are.

        A plan also holds kernels, 2.6 MB for a profile of a full-width block (docs/findings.md); of a small model they
        outweigh the weights, so that `KERNEL_BYTES` are always allowed.
        """
        return self.weight_bytes > 0 and plan_bytes > WEIGHTS_RATIO * self.weight_bytes + KERNEL_BYTES


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds of a dynamic dimension, and the value that kernels are tuned for."""

    min: int
    opt: int
    max: int

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max


@dataclass(frozen=True, slots=True)
class Profile:
    """A box of shapes: heights and widths in pixels, images per batch, padded prompt tokens."""

    name: str
    height: Range
    width: Range
    batch: Range
    prompt_length: Range

    def covers(self, size: Size, batch: int) -> bool:
        """Return True if a batch of images of this size is within the bounds."""
        return size.height in self.height and size.width in self.width and batch in self.batch

    @property
    def area(self) -> int:
        """Pixels of the largest image."""
        return self.height.max * self.width.max


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding of the transformer: base and head dimensions per axis (prompt or frame, row, column)."""

    theta: float
    axes_dims: tuple[int, ...]
    axes_lens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The chat template around a prompt, and the length at which it is cut."""

    prefix: str
    suffix: str
    max_tokens: int
    pad_token_id: int


@dataclass(frozen=True, slots=True)
class MergedLora:
    """A LoRA that was merged into the weights."""

    file: str
    sha256: str
    scale: float


@dataclass(frozen=True, slots=True)
class Model:
    """Facts of the checkpoint that the runtime needs."""

    name: str
    weights_sha256: str
    latent_channels: int
    vae_scale: int  # pixels per latent, 8
    patch_size: int  # latents per token along an axis, 2
    prompt_embeds_dim: int
    rope: Rope
    prompt: PromptFormat
    schedule_shift: float
    default_steps: int
    default_guidance: float  # diffusers' guidance_scale; 0 for none
    loras: tuple[MergedLora, ...] = ()

    @property
    def size_multiple(self) -> int:
        """Pixels; heights and widths are multiples of it."""
        return self.vae_scale * self.patch_size

    def latents_shape(self, size: Size) -> tuple[int, int, int, int]:
        """Return [1, 16, height / 8, width / 8], the shape of one image's latents."""
        return 1, self.latent_channels, size.height // self.vae_scale, size.width // self.vae_scale


@dataclass(frozen=True, slots=True)
class Target:
    """The builder of the plans, and the GPUs that they are for. `compute_capabilities` is empty for ONNX."""

    flavor: Flavor
    builder: str  # "tensorrt_rtx 1.7.1.116", "onnx opset 20"
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreviewProjection:
    """An approximate colour for a pixel of latents: rgb = latents @ weights + bias, in units of 0..255."""

    weights: tuple[tuple[float, ...], ...]  # a row of red, green and blue per latent channel
    bias: tuple[float, float, float]
    r2: float  # of the fit, on held-out images


@dataclass(frozen=True, slots=True)
class File:
    """One file of the plan directory; `path` is relative to it."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`. It is written last, so a directory that has one is complete."""

    schema_version: int
    plan_id: str  # hash of all inputs of the build: the same inputs give the same directory
    zimage_trt: str
    precision: Precision
    model: Model
    target: Target
    profiles: tuple[Profile, ...]  # in the order of TensorRT's profile index
    graphs: dict[GraphName, Graph]
    files: tuple[File, ...]
    refittable: bool = False
    accumulation: Accumulation = "fp32"  # number format in which the denoiser sums products of FP16 tensors
    preview: PreviewProjection | None = None  # None if the checkpoint has no VAE encoder to fit it with
    checksum: str = ""  # of all other fields; set by `encode`

    @property
    def is_verified(self) -> bool:
        """True if every graph was compared with the model that it was exported from."""
        return all(graph.parity is not None for graph in self.graphs.values())

    @property
    def has_image_input(self) -> bool:
        """True if an image can be an input: the plans have a VAE encoder."""
        return all(name in self.graphs for name in IMAGE_INPUT)

    @property
    def default_size(self) -> Size:
        """The size for a request without one: the size that the first profile is tuned for."""
        return Size(self.profiles[0].width.opt, self.profiles[0].height.opt)

    @property
    def size_limits(self) -> SizeLimits:
        """The sizes of the profiles."""
        ranges = tuple(SizeRange(p.width.min, p.width.max, p.height.min, p.height.max) for p in self.profiles)
        return SizeLimits(self.model.size_multiple, ranges, self.default_size)

    @property
    def refit_weights(self) -> tuple[RefitWeight, ...]:
        """The weights of all graphs that a LoRA can change."""
        return tuple(weight for graph in self.graphs.values() for weight in graph.refittable)

    def without_image_input(self) -> "Manifest":
        """Return the manifest without the graphs that images as inputs need."""
        return replace(self, graphs={name: graph for name, graph in self.graphs.items() if name not in IMAGE_INPUT})

    def choose_profiles(self, names: Sequence[str]) -> dict[int, Profile]:
        """Return the named profiles, or all if no name is given, by TensorRT's profile index.

        Raises:
            PlanMismatch: the plans have no profile of a name.
        """
        known = [profile.name for profile in self.profiles]
        for name in names:
            if name not in known:
                raise PlanMismatch(f"the plans have no profile {name}; they have {', '.join(known)}")
        return {i: profile for i, profile in enumerate(self.profiles) if not names or profile.name in names}

    def profile_for(self, size: Size, batch: int = 1) -> Profile:
        """Return the tightest profile that covers the shape.

        Raises:
            UnsupportedShape: no profile does; the message names the dimension and the range that the plans cover.
        """
        multiple = self.model.size_multiple
        for param, value in (("height", size.height), ("width", size.width)):
            if value % multiple:
                raise UnsupportedShape(f"{param} must be a multiple of {multiple}, got {value}", param)
        covering = [p for p in self.profiles if p.covers(size, batch)]
        if not covering:
            raise self._unsupported(size, batch)
        return min(covering, key=lambda p: p.area)

    def _unsupported(self, size: Size, batch: int) -> UnsupportedShape:
        for param, value in (("height", size.height), ("width", size.width), ("batch", batch)):
            ranges = [getattr(p, param) for p in self.profiles]
            low, high = min(r.min for r in ranges), max(r.max for r in ranges)
            if not low <= value <= high:
                return UnsupportedShape(f"{param} must be between {low} and {high} (the plans), got {value}", param)
        boxes = ", ".join(
            f"{p.width.min}..{p.width.max} x {p.height.min}..{p.height.max} at batch {p.batch.min}..{p.batch.max}"
            for p in self.profiles
        )
        return UnsupportedShape(
            f"no profile covers {size.width} x {size.height} (width x height) at batch {batch}; "
            f"the plans cover {boxes}",
            "size",
        )


def padded(tokens: int) -> int:
    """Return tokens rounded up to the multiple that the transformer pads to."""
    return -(-tokens // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE
