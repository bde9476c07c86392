"""Bodies of AUTOMATIC1111's `txt2img` and `img2img`, with the fields of its descendants Forge and SD.Next.

A field either changes our image as it changes theirs, or has no effect here and is reported, or asks for another image
than ours and is refused by name. Knows no routes.
"""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from engine.errors import InvalidRequest
from engine.images.preparation import MASK_BLUR, MAX_MASK_BLUR, MAX_PADDING, ResizeMode
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
    agreed,
)
from server.api.image_input import Upload

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
# of img2img alone
IMG2IMG_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "image_cfg_scale": (1.5,),  # is for models that were trained to follow instructions
    "include_init_images": (False,),
}
IMG2IMG_REFUSED: dict[str, tuple[Any, ...]] = {"initial_noise_multiplier": (0, 1), "latent_mask": ()}
BLURS = ("mask_blur", "mask_blur_x", "mask_blur_y")
OF_CROPS = (*BLURS, "inpaint_full_res_padding")  # fields that mean nothing without a crop to the mask
OF_MASKS = (*OF_CROPS, "inpainting_fill", "inpaint_full_res", "inpainting_mask_invert")  # nor without a mask
INSTEAD = {
    "enable_hr": "ask for the size itself, by width and height",
    "styles": "write them into the prompt",
    "latent_mask": "send a mask",
}
RESIZE_MODES: dict[int, ResizeMode] = {0: "stretch", 1: "crop"}
FROM_SURROUNDINGS, FROM_ORIGINAL = 0, 1  # of inpainting_fill; the others begin with noise or with nothing


def _as_bool(value: Any) -> Any:
    """Return 0 and 1 as booleans, and anything else as it is."""
    return bool(value) if value in (0, 1) else value


Flag = Annotated[bool, BeforeValidator(_as_bool)]


class ProcessingRequest(ExtraFields):
    """Fields of `txt2img` and `img2img`. Steps, size and CFG scale that are absent are the model's.

    Attributes:
        refused: fields that ask for another image, with the values that do not.
    """

    without_effect: ClassVar[dict[str, tuple[Any, ...]]] = WITHOUT_EFFECT | REFUSED
    refused: ClassVar[dict[str, tuple[Any, ...]]] = REFUSED

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
            if value is not None and value not in self.refused.get(name, (value,)):
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


class Txt2ImgRequest(ProcessingRequest):
    """Body of `POST /sdapi/v1/txt2img`."""


class Img2ImgRequest(ProcessingRequest):
    """Body of `POST /sdapi/v1/img2img`. Without a size, the result has that of the init image."""

    without_effect: ClassVar[dict[str, tuple[Any, ...]]] = (
        {name: values for name, values in WITHOUT_EFFECT.items() if name != "denoising_strength"}
        | IMG2IMG_WITHOUT_EFFECT
        | REFUSED
        | IMG2IMG_REFUSED
    )
    refused: ClassVar[dict[str, tuple[Any, ...]]] = REFUSED | IMG2IMG_REFUSED

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    init_images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)]
    mask: str | None = None
    denoising_strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    resize_mode: Annotated[int, Field(ge=0, le=3), WHOLE] = 0
    mask_blur: Annotated[int, Field(ge=0, le=MAX_MASK_BLUR), WHOLE] | None = None
    mask_blur_x: Annotated[int, Field(ge=0, le=MAX_MASK_BLUR), WHOLE] | None = None
    mask_blur_y: Annotated[int, Field(ge=0, le=MAX_MASK_BLUR), WHOLE] | None = None
    inpainting_fill: Annotated[int, Field(ge=0, le=3), WHOLE] = FROM_SURROUNDINGS
    inpaint_full_res: Flag = True
    inpaint_full_res_padding: Annotated[int, Field(ge=0, le=MAX_PADDING), WHOLE] = 0
    inpainting_mask_invert: Flag = False

    @property
    def blur(self) -> int:
        """Width of the soft edge of a mask in pixels. Raises InvalidRequest if it differs between the directions."""
        blur = agreed({"mask_blur": self.mask_blur, "mask_blur_x": self.mask_blur_x, "mask_blur_y": self.mask_blur_y})
        return MASK_BLUR if blur is None else blur

    def images(self) -> dict[str, str]:
        """Return the init image and the mask, as base64, by the names of their fields."""
        return {"init_images": self.init_images[0]} | ({"mask": self.mask} if self.mask else {})

    def upload(self, image: bytes, mask: bytes | None) -> Upload:
        """Return the init image with what to do with it. `image`, `mask`: the decoded fields."""
        return Upload(
            image,
            mask,
            self.denoising_strength,
            RESIZE_MODES[self.resize_mode],
            self.inpaint_full_res_padding if mask is not None and self.inpaint_full_res else None,
            self.blur,
            mask_is_inverted=mask is not None and self.inpainting_mask_invert,
            is_filled=mask is not None and self.inpainting_fill != FROM_ORIGINAL,
            image_param="init_images",
        )

    def image(self) -> ImageRequest:
        """Return the request for the first image, without its init image.

        Raises:
            InvalidRequest: as for `txt2img`, or there is more than one init image.
        """
        if any(image != self.init_images[0] for image in self.init_images):
            raise InvalidRequest(
                "init_images must hold one image, or copies of it; send a request for each image", "init_images"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise InvalidRequest(
                f"resize_mode must be 0 (stretch) or 1 (crop), got {self.resize_mode}; 2 (fill) and 3 (latents)"
                " are not on offer",
                "resize_mode",
            )
        if self.mask and self.inpainting_fill > FROM_ORIGINAL and self.denoising_strength < 1:
            raise InvalidRequest(  # at full strength the masked part begins with noise alone
                f"inpainting_fill must be 0 (surroundings) or 1 (original), got {self.inpainting_fill};"
                " set denoising_strength to 1 to begin with noise",
                "inpainting_fill",
            )
        return super().image()

    def ignored(self) -> tuple[str, ...]:
        unused = OF_MASKS if not self.mask else () if self.inpaint_full_res else OF_CROPS
        fields = type(self).model_fields
        defaults = {name: MASK_BLUR if name in BLURS else fields[name].default for name in unused}
        given = (name for name in unused if getattr(self, name) not in (None, defaults[name]))
        return (*super().ignored(), *given)
