"""Stage times of one image."""

from dataclasses import dataclass
from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]  # finite: NaN in an average would stay there


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of each stage of one image, in the order in which the stages run; 0 for a stage that did not run.

    Attributes:
        tokenize: prompts to token ids.
        prompt_encoder: token ids to prompt_embeds; on a GPU by the device's clock.
        vae_encoder: init image to latents.
        passes: this image's share of the forward passes that it was part of.
        denoiser: from the first forward pass to the last, the passes of other images between them included.
        vae_decoder: latents to pixels.
        encode: pixels to an image file.
    """

    tokenize: Seconds = 0.0
    prompt_encoder: Seconds = 0.0
    vae_encoder: Seconds = 0.0
    passes: Seconds = 0.0
    denoiser: Seconds = 0.0
    vae_decoder: Seconds = 0.0
    encode: Seconds = 0.0

    @property
    def total(self) -> float:
        """Seconds from the prompt to the file; `passes` is part of `denoiser`."""
        return self.tokenize + self.prompt_encoder + self.vae_encoder + self.denoiser + self.vae_decoder + self.encode
