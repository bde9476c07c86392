"""The page's form. Knows inputs and the sizes of the plans; not what happens to a request."""

from functools import partial
from math import sqrt
from typing import Any

from nicegui import ui

from engine.errors import InvalidRequest, UnsupportedShape
from engine.plan.guide import Guide
from engine.plan.manifest import Manifest
from engine.request import MAX_GUIDANCE, MAX_LORA_STRENGTH, MAX_RANDOM_SEED, MAX_STEPS, ImageRequest
from engine.size import Size
from server.api.task_schemas import GenerateRequest

RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))  # width : height
PREVIEWS = 4  # per image; about 1 MB each at 1024x1024
OTHER = "other"
MAX_EXACT = 2**53 - 1  # integers that a browser's numbers hold


class Form:
    """Inputs of a request, in the current element."""

    def __init__(self, manifest: Manifest, loras: tuple[str, ...], guide: Guide) -> None:
        self._manifest = manifest
        default = manifest.default_size
        self.prompt = ui.textarea("Prompt", placeholder="Describe the image").props("outlined autogrow autofocus")
        if guide.about:
            ui.label(guide.about).classes("z-quiet")
        with ui.element("div").classes("z-examples"):
            for example in guide.examples:
                ui.button(example, on_click=partial(self.prompt.set_value, example)).props(
                    "flat dense no-caps align=left"
                )
        offered = {str(size): _label(size) for size in sizes(manifest, guide)}
        self._size = ui.select(
            offered | {OTHER: "Other size"}, label="Size", value=str(default), on_change=self._choose_size
        ).props("outlined dense")
        with ui.element("div").classes("z-pair") as self._free:
            multiple = manifest.model.size_multiple
            self._width = ui.number("Width", value=default.width, step=multiple).props("outlined dense")
            self._height = ui.number("Height", value=default.height, step=multiple).props("outlined dense")
        self._free.bind_visibility_from(self._size, "value", value=OTHER)
        with ui.element("div").classes("z-pair"):
            steps = manifest.model.default_steps
            self._steps = ui.number("Steps", value=steps, min=1, max=MAX_STEPS).props("outlined dense")
            self._seed = ui.number("Seed", placeholder="random", min=-1, max=MAX_EXACT)
            self._seed.props("outlined dense clearable stack-label")
        self._lora = None
        if loras:
            limit = MAX_LORA_STRENGTH
            choices = {"": "none"} | {name: name for name in loras}
            with ui.element("div").classes("z-pair"):
                self._lora = ui.select(choices, label="LoRA", value="").props("outlined dense")
                self._strength = ui.number("Strength", value=1, min=-limit, max=limit, step=0.1).props("outlined dense")
        with ui.expansion("Advanced"):
            self._negative = ui.textarea("Negative prompt").props("outlined dense autogrow")
            self._guidance = ui.number("Guidance", min=0, max=MAX_GUIDANCE, step=0.5).props("outlined dense")
            self._guidance.value = manifest.model.default_guidance
            ui.label("0 is off. Above 0, every step takes twice as long.").classes("z-quiet")

    def request(self) -> GenerateRequest:
        """Return the request in the inputs.

        Raises:
            ValidationError: a field is wrong.
            InvalidRequest: the negative prompt would be ignored.
        """
        negative, guidance = self._negative.value or "", self._guidance.value or 0.0
        if negative and not guidance:
            raise InvalidRequest("A negative prompt needs a guidance above 0.", "negative_prompt")
        fields = {
            "prompt": self.prompt.value or "",
            "negative_prompt": negative,
            "width": _whole(self._width.value),
            "height": _whole(self._height.value),
            "num_inference_steps": _whole(self._steps.value),
            "seed": -1 if self._seed.value is None else _whole(self._seed.value),
            "guidance_scale": guidance,
            "previews": PREVIEWS if self._manifest.preview else 0,
        }
        if self._lora is not None and self._lora.value:
            fields["lora"] = self._lora.value
            fields["lora_strength"] = 1.0 if self._strength.value is None else self._strength.value
        return GenerateRequest.model_validate(fields)

    def take_over(self, request: ImageRequest) -> None:
        """Set the inputs to those of an image."""
        size = request.size(self._manifest)
        self.prompt.value = request.prompt
        self._size.value = str(size) if str(size) in self._size.options else OTHER
        self._width.value, self._height.value = size
        self._steps.value, self._seed.value = request.steps(self._manifest), exact_seed(request.seed)
        self._negative.value, self._guidance.value = request.negative_prompt, request.guidance(self._manifest)
        if self._lora is not None:
            lora = request.lora or ""
            self._lora.value = lora if lora in self._lora.options else ""
            self._strength.value = request.lora_strength

    def _choose_size(self) -> None:
        if self._size.value != OTHER:
            self._width.value, self._height.value = Size.parse(self._size.value)


def sizes(manifest: Manifest, guide: Guide) -> list[Size]:
    """Return the sizes to offer: the guide's, or per profile common ratios at the area it is tuned for and its largest
    square.
    """
    found = [manifest.default_size, *map(Size.parse, guide.sizes)]
    for profile in () if guide.sizes else manifest.profiles:
        area, edge = profile.height.opt * profile.width.opt, min(profile.height.max, profile.width.max)
        found += [_near(area, ratio, manifest.model.size_multiple) for ratio in RATIOS]
        found.append(Size(edge, edge))
    return [size for size in dict.fromkeys(found) if _is_supported(manifest, size)]


def exact_seed(seed: int) -> int:
    """Return a seed of the same image that a browser's numbers hold."""
    return seed if seed <= MAX_EXACT else seed % (MAX_RANDOM_SEED + 1)


def _near(area: int, ratio: tuple[int, int], multiple: int) -> Size:
    unit = sqrt(area / (ratio[0] * ratio[1]))
    width, height = (max(1, round(part * unit / multiple)) * multiple for part in ratio)
    return Size(width, height)


def _is_supported(manifest: Manifest, size: Size) -> bool:
    try:
        manifest.profile_for(size)
    except UnsupportedShape:
        return False
    return True


def _label(size: Size) -> str:
    """Return a size and its shape in words."""
    width, height = size
    shape = "square" if width == height else "landscape" if width > height else "portrait"
    return f"{width} × {height}, {shape}"


def _whole(value: Any) -> Any:
    """Return a browser's number as an integer if it is whole; the schema refuses other values."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
