"""Gradio's bodies, and the description of the one function that its clients call. Knows no routes."""

from typing import Annotated, Any

from fastapi import Request
from pydantic import ConfigDict, Field, ValidationError

from engine.plan.manifest import Manifest
from server.api import errors
from server.api.fields import UNGUIDED, RequestBody
from server.api.public_address import public_root
from server.api.task_schemas import GenerateRequest

VERSION = "5.0.0"  # of Gradio, whose protocol this is
PREFIX = "/gradio_api"
FUNCTION = "predict"
# what the function takes, in this order, with its types: the first five are those of the first deployments
INPUTS = {
    "prompt": "string",
    "width": "number",
    "height": "number",
    "num_inference_steps": "number",
    "cfg_scale": "number",
    "seed": "number",
    "negative_prompt": "string",
    "cfg_normalization": "number",
    "cfg_truncation": "number",
}
PYTHON_TYPES = {"string": "str", "number": "float"}
COMPONENTS = {"string": "Textbox", "number": "Number"}
FILE = {
    "title": "FileData",
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "url": {"type": "string"},
        "meta": {"type": "object", "properties": {"_type": {"const": "gradio.FileData"}}},
    },
}
MAX_NAME = 128  # characters of a session or an event


class Call(RequestBody):
    """Body of a call: the function's arguments, and what the clients of Gradio's queue add."""

    model_config = ConfigDict(frozen=False)

    data: Annotated[list[Any], Field(max_length=len(INPUTS))]
    fn_index: Annotated[int, Field(ge=0, le=0)] | None = None
    session_hash: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    event_data: None = None
    trigger_id: int | None = None
    event_id: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    simple_format: bool | None = None
    batched: bool | None = None
    request: Any = None

    def arguments(self) -> GenerateRequest:
        """Return the arguments as the body that they stand for.

        Raises:
            ApiError: 400, one of them is invalid; the error names it.
        """
        try:
            return GenerateRequest.model_validate(dict(zip(INPUTS, self.data, strict=False)))
        except ValidationError as error:
            raise errors.invalid_body(error) from error


class Cancel(RequestBody):
    """Body of a request to cancel a call."""

    event_id: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    fn_index: int | None = None
    session_hash: Annotated[str, Field(max_length=MAX_NAME)] | None = None


def check_function(name: str) -> None:
    """Raise ApiError (404) unless this is the name of the function."""
    if name != FUNCTION:
        raise errors.ApiError(
            404, f"There is no function {name[: errors.ECHO]!r}; call /{FUNCTION}.", code="unsupported_value"
        )


def config(request: Request) -> dict[str, Any]:
    """Return what a client reads first: the function, and where to call it."""
    inputs = [
        {"id": number, "type": COMPONENTS[kind].lower(), "props": {"label": name}, "skip_api": False}
        for number, (name, kind) in enumerate(INPUTS.items())
    ]
    output = {"id": len(inputs), "type": "image", "props": {"label": "image"}, "skip_api": False, "api_info": FILE}
    function = {
        "id": 0,
        "api_name": FUNCTION,
        "api_visibility": "public",
        "show_api": True,
        "backend_fn": True,
        "queue": True,
        "inputs": [one["id"] for one in inputs],
        "outputs": [output["id"]],
        "targets": [],
        "cancels": [],
        "types": {"generator": False, "cancel": False},
    }
    return {
        "version": VERSION,
        "api_prefix": PREFIX,
        "root": public_root(request).rstrip("/"),
        "protocol": "sse_v3",
        "mode": "interface",
        "title": "zimage-trt",
        "is_space": False,
        "is_colab": False,
        "enable_queue": True,
        "show_error": True,
        "connect_heartbeat": False,
        "components": [*inputs, output],
        "dependencies": [function],
    }


def info(manifest: Manifest) -> dict[str, Any]:
    """Return the names, types and defaults of the function's arguments."""
    width, height = manifest.default_size
    defaults: dict[str, Any] = {
        "width": width,
        "height": height,
        "num_inference_steps": manifest.model.default_steps,
        "cfg_scale": manifest.model.default_guidance + UNGUIDED,
    }
    defaults |= {"seed": -1, "negative_prompt": "", "cfg_normalization": 0, "cfg_truncation": 1}
    parameters = [
        {
            "label": name,
            "parameter_name": name,
            "parameter_has_default": name in defaults,
            "parameter_default": defaults.get(name),
            "type": {"type": kind},
            "python_type": {"type": PYTHON_TYPES[kind], "description": ""},
            "component": COMPONENTS[kind],
            "example_input": defaults.get(name, "a red circle"),
        }
        for name, kind in INPUTS.items()
    ]
    result = {
        "label": "image",
        "type": FILE,
        "python_type": {"type": "filepath", "description": ""},
        "component": "Image",
    }
    return {
        "named_endpoints": {f"/{FUNCTION}": {"parameters": parameters, "returns": [result]}},
        "unnamed_endpoints": {},
    }
