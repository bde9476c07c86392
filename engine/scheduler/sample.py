"""An image between its request and its last step.

Knows sizes, steps and slots; not the values of tensors, nor the order in which samples run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from engine.array import Array
from engine.init_image import InitImage
from engine.plan.manifest import Manifest, padded
from engine.request import ImageRequest
from engine.sampling.preview import preview_steps
from engine.sampling.tokenizer import TokenizedPrompt, TokenizedPrompts
from engine.size import Size
from engine.stages import StageTimes

TOKEN_PIXELS = 256  # of one image token of Z-Image
NONE: frozenset[int] = frozenset()


@dataclass(slots=True, eq=False)
class GuidanceBranch:
    """One prompt of a sample: its own or, with guidance, the negative one.

    Attributes:
        steps: forward passes that it takes: the steps of the image, or of the negative prompt those that are guided.
        slot: index of the slot that it occupies; None before it has one.
        enqueued: forward passes that were enqueued.
        completed: forward passes that are known to be over.
        length: prompt tokens, padded.
    """

    prompt: TokenizedPrompt
    steps: int
    slot: int | None = None
    enqueued: int = 0
    completed: int = 0
    length: int = field(init=False)  # once: the scheduler asks for it at every step

    def __post_init__(self) -> None:
        self.length = padded(len(self.prompt.ids))


@dataclass(slots=True, eq=False)
class Sample:
    """An image from its request to its last step.

    Attributes:
        num_inference_steps: steps of the whole schedule; an init image skips the first ones.
        schedule: [steps + 1] float32, noise levels of the steps that are run.
        branches: the prompt, and with guidance the negative prompt.
        init_image: the image that it begins with, if it does not begin with noise alone.
        previews: steps after which a preview is wanted.
        client: name of the client that asked for it; clients share the device's time equally.
        cost_factor: times which its device time counts against the share of its client.
        submitted_at: time.perf_counter() when it was submitted.
        is_announced: True once a `Started` event was returned for it.
        is_removed: True once it is finished, cancelled or failed; results of passes still running are ignored.
        first_pass_at: time.perf_counter() when its slots were filled for its first pass.
        latents: [16, h, w] before the step whose preview is wanted next.
        seconds: of the stages that are over.
    """

    key: str
    request: ImageRequest
    size: Size
    num_inference_steps: int
    schedule: Array
    branches: tuple[GuidanceBranch, ...]
    init_image: InitImage | None = None
    previews: frozenset[int] = frozenset()
    client: str = ""
    cost_factor: float = 1.0
    submitted_at: float = 0.0
    is_announced: bool = False
    is_removed: bool = False
    first_pass_at: float | None = None
    latents: Array | None = None
    seconds: StageTimes = field(default_factory=StageTimes)

    @classmethod
    def of(
        cls,
        key: str,
        request: ImageRequest,
        manifest: Manifest,
        prompts: TokenizedPrompts,
        schedule: Array,
        *,
        submitted_at: float,
        init_image: InitImage | None = None,
        previews: int = 0,
        client: str = "",
        cost_factor: float = 1.0,
    ) -> Self:
        """Return the sample of a request to plans.

        Args:
            schedule: [steps + 1] float32, the request's noise levels.
            previews: their number.
        """
        steps = len(schedule) - 1
        return cls(
            key=key,
            request=request,
            size=request.size(manifest),
            num_inference_steps=request.steps(manifest),
            schedule=schedule,
            branches=tuple(map(GuidanceBranch, prompts.prompts, (steps, request.guided_steps(manifest)))),
            init_image=init_image,
            previews=preview_steps(previews, steps) if previews else NONE,
            client=client,
            cost_factor=cost_factor,
            submitted_at=submitted_at,
            seconds=StageTimes(tokenize=prompts.seconds),
        )

    @property
    def steps(self) -> int:
        return len(self.schedule) - 1

    @property
    def done(self) -> int:
        """Steps that are known to be over, in every branch that takes part in them."""
        if len(self.branches) == 1:
            return self.branches[0].completed
        return min(self.steps if b.completed == b.steps else b.completed for b in self.branches)

    @property
    def enqueued(self) -> int:
        """Steps that are enqueued in every branch that takes part in them."""
        if len(self.branches) == 1:
            return self.branches[0].enqueued
        return min(self.steps if b.enqueued == b.steps else b.enqueued for b in self.branches)

    @property
    def is_step_complete(self) -> bool:
        """True if no branch is enqueued for a step that another one still lacks."""
        return all(branch.enqueued <= self.enqueued for branch in self.branches)

    def is_guided(self, step: int) -> bool:
        """Return True if a step, counted from 0, takes a pass of each branch."""
        return len(self.branches) > 1 and all(step < branch.steps for branch in self.branches)

    @property
    def is_inpainted(self) -> bool:
        """True if a mask says where the init image is drawn anew."""
        return self.init_image is not None and self.init_image.is_inpainting

    def tokens(self, branch: GuidanceBranch) -> int:
        """Return the tokens that the transformer reads in one pass."""
        return self.size.area // TOKEN_PIXELS + branch.length

    @property
    def tokens_left(self) -> int:
        """Tokens of all passes that are not known to be over."""
        if len(self.branches) == 1:
            branch = self.branches[0]
            return self.tokens(branch) * (branch.steps - branch.completed)
        return sum(self.tokens(branch) * (branch.steps - branch.completed) for branch in self.branches)

    def record(self, **seconds: float) -> None:
        """Record seconds by the fields of `StageTimes`."""
        self.seconds = replace(self.seconds, **seconds)

    def ready(self) -> Iterator["Pass"]:
        """Yield the passes that may be enqueued: a guided branch is at most one pass ahead of the other."""
        step = self.enqueued
        for branch in self.branches:
            if branch.enqueued == step < branch.steps:
                yield Pass(self, branch, step)


class Pass(NamedTuple):
    """One forward pass of one branch of a sample; `step` counts from 0."""

    sample: Sample
    branch: GuidanceBranch
    step: int
