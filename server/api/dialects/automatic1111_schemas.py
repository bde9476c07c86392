"""Body of AUTOMATIC1111's `txt2img`, with the fields of its descendants Forge and SD.Next. Knows no routes.

A field either changes our image as it changes theirs, or has no effect here and is reported, or asks for another image
than ours and is refused by name.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from engine.errors import InvalidRequest
from engine.request import MAX_SEED, ImageRequest, random_seed
from server.api.dialects import lora_tags
from server.api.dialects.extra_fields import ExtraFields
from server.api.fields import (
    MAX_PROMPT,
    RANDOM,
    UNGUIDED,
    WHOLE,
    CfgNormalization,
    CfgScale,
    CfgTruncation,
    Edge,
    Prompt,
    Steps,
)

MAX_IMAGES = 10
MODEL = "sd_model_checkpoint"

# fields without an effect, with the values that ask for nothing: the web UI's defaults
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    # there is one sampler and one schedule
    "sampler_name": ("Euler", ""),
    "sampler_index": ("Euler", ""),
    "scheduler": ("Automatic", "automatic", "Simple", "simple", ""),
    **dict.fromkeys(("eta", "s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise"), (0, 1)),
    "distilled_cfg_scale": (),
    "clip_skip": (0, 1),
    # parts of features that are off, or else refused below
    "denoising_strength": (0,),
    **dict.fromkeys(
        ("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"), (0, 2, "Latent")
    ),
    **dict.fromkeys(
        ("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt"), ("",)
    ),
    **dict.fromkeys(("hr_cfg", "hr_distilled_cfg", "hr_additional_modules"), ()),
    "subseed": (RANDOM,),
    "refiner_switch_at": (),
    "script_args": ([],),
    # what the web UI does beside the image
    "override_settings_restore_afterwards": (True, False),
    "do_not_save_samples": (False,),
    "do_not_save_grid": (False,),
    "save_images": (False,),
    "comments": ({},),
    "force_task_id": (),
    # what SillyTavern passes on to the web UI
    "url": (),
    "auth": (),
}
# fields that ask for another image, with the values that do not
REFUSED: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False,),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    "restore_faces": (False,),
    "tiling": (False,),
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "script_name": ("", "None"),
    "alwayson_scripts": ({},),
    "refiner_checkpoint": ("", "None"),
    "infotext": ("",),
}
INSTEAD = {"enable_hr": "ask for the size itself, by width and height", "styles": "write them into the prompt"}


class Txt2ImgRequest(ExtraFields):
    """Body of `POST /sdapi/v1/txt2img`. Steps, size and CFG scale that are absent are the model's, not the web UI's."""

    without_effect: ClassVar[dict[str, tuple[Any, ...]]] = WITHOUT_EFFECT | REFUSED

    prompt: Prompt
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    seed: Annotated[int, Field(ge=RANDOM, le=MAX_SEED), WHOLE] = RANDOM
    steps: Steps | None = None
    cfg_scale: CfgScale | None = None
    cfg_normalization: CfgNormalization = 0.0
    cfg_truncation: CfgTruncation = 1.0
    width: Edge | None = None
    height: Edge | None = None
    batch_size: Annotated[int, Field(ge=1, le=MAX_IMAGES), WHOLE] = 1
    n_iter: Annotated[int, Field(ge=1, le=MAX_IMAGES), WHOLE] = 1
    send_images: bool = True
    disable_extra_networks: bool = False
    override_settings: Annotated[dict[str, Any], Field(default_factory=dict)]

    @property
    def image_count(self) -> int:
        """Number of images. Raises InvalidRequest if there are too many."""
        if (count := self.batch_size * self.n_iter) > MAX_IMAGES:
            raise InvalidRequest(f"batch_size times n_iter must be at most {MAX_IMAGES}, got {count}", "n_iter")
        return count

    @property
    def model(self) -> str | None:
        """Name of the model in `override_settings`. Raises InvalidRequest if it is no name."""
        name = self.override_settings.get(MODEL)
        if name is not None and not isinstance(name, str):
            raise InvalidRequest(f"override_settings.{MODEL} must be a name", f"override_settings.{MODEL}")
        return name

    def image(self) -> ImageRequest:
        """Return the request for the first image; the seeds of the others follow. Without a seed, pick one.

        Raises:
            InvalidRequest: a field asks for another image, or a tag in the prompt is none.
        """
        for name, value in (self.model_extra or {}).items():
            if value is not None and value not in REFUSED.get(name, (value,)):
                reason = INSTEAD.get(name, "leave it out")
                raise InvalidRequest(f"{name} would change the image in a way that is not on offer; {reason}", name)
        tagged = lora_tags.TaggedPrompt(self.prompt) if self.disable_extra_networks else lora_tags.parse(self.prompt)
        return ImageRequest(
            tagged.text,
            self.width,
            self.height,
            random_seed() if self.seed == RANDOM else self.seed,
            self.steps,
            self.negative_prompt,
            None if self.cfg_scale is None else max(self.cfg_scale - UNGUIDED, 0.0),
            tagged.lora,
            tagged.strength,
            self.cfg_normalization,
            self.cfg_truncation,
        )

    def ignored(self) -> tuple[str, ...]:
        settings = (f"override_settings.{name}" for name, value in self.override_settings.items() if value is not None)
        return (*super().ignored(), *(name for name in settings if not name.endswith(f".{MODEL}")))
