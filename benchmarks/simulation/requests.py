"""Requests and samples of a mix's kinds, made once for each kind. Knows neither servers nor clients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.workload.mix import RequestKind
from engine.array import Array
from engine.plan.manifest import Manifest, padded
from engine.request import IMG2IMG_STRENGTH, Edit, ImageRequest
from engine.sampling.tokenizer import TokenizedPrompt, TokenizedPrompts
from engine.scheduler.sample import Sample
from engine.size import Size
from server.jobs.storage.fleet.claim_order import Kind

INIT_IMAGE = "simulated"


@dataclass(frozen=True, slots=True)
class PreparedKind:
    """Properties that all requests of one kind share.

    Attributes:
        schedule: [steps + 1] float32, noise levels.
        cost: pixels times forward passes of one image.
        lora_and_size: what images that share passes have in common.
        steps: steps of each image, without those that an edit skips.
        slots: slots of the engine that each image takes.
        prompt_length: padded tokens of each prompt.
    """

    kind: RequestKind
    request: ImageRequest
    prompts: TokenizedPrompts
    schedule: Array
    cost: float
    lora_and_size: Kind
    steps: int
    slots: int
    prompt_length: int

    @property
    def size(self) -> Size:
        return self.lora_and_size[1]


def prepare(kinds: Sequence[RequestKind], manifest: Manifest, prompt_length: int) -> dict[str, PreparedKind]:
    """Return the prepared kinds of a mix by name.

    Args:
        prompt_length: tokens of each prompt.

    Raises:
        InvalidRequest: the plans cannot generate one of them.
    """
    return {kind.name: _prepared(kind, manifest, prompt_length) for kind in kinds}


def sample(
    key: str, prepared: PreparedKind, manifest: Manifest, now: float, client: str, cost_factor: float = 1.0
) -> Sample:
    """Return a sample of a kind."""
    return Sample.of(
        key,
        prepared.request,
        manifest,
        prepared.prompts,
        prepared.schedule,
        submitted_at=now,
        client=client,
        cost_factor=cost_factor,
    )


def _prepared(kind: RequestKind, manifest: Manifest, prompt_length: int) -> PreparedKind:
    request = ImageRequest(
        kind.name,
        kind.width,
        kind.height,
        num_inference_steps=kind.steps,
        guidance_scale=kind.guidance_scale,
        lora=kind.lora,
        edit=Edit(IMG2IMG_STRENGTH, INIT_IMAGE) if kind.edit else None,
    )
    request.check(manifest, () if kind.lora is None else (kind.lora,))
    number = 2 if request.guided_steps(manifest) else 1
    tokens = tuple(range(prompt_length))
    prompts = TokenizedPrompts(tuple(TokenizedPrompt(tokens, kind.name, "") for _ in range(number)), 0.0)
    schedule = np.asarray(request.noise_levels(manifest), np.float32)
    return PreparedKind(
        kind,
        request,
        prompts,
        schedule,
        cost=float(request.forwards(manifest) * kind.size.area),
        lora_and_size=(kind.lora, kind.size),
        steps=len(schedule) - 1,
        slots=number,
        prompt_length=padded(prompt_length),
    )
