"""Lists from which AUTOMATIC1111's clients choose (models, LoRAs, samplers, ...), and settings. Most lists are empty.

Knows neither images nor jobs.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict

from server.api.body import read_body
from server.api.dialects.automatic1111_schemas import MODEL
from server.api.dialects.routes import refuse_pages, with_errors
from server.api.errors import ApiError
from server.api.fields import RequestBody
from server.api.served_model import Model, ServedModel
from server.api.submit import Jobs, ignored_header

SAMPLER = "Euler"
LISTS: dict[str, Any] = {
    "samplers": [{"name": SAMPLER, "aliases": ["euler"], "options": {}}],
    "schedulers": [
        {"name": "simple", "label": "Simple", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
    ],
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}],
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {},
    "extensions": [],
    "face-restorers": [],
    "hypernetworks": [],
    "latent-upscale-modes": [],
    "prompt-styles": [],
    "realesrgan-models": [],
    "script-info": [],
    "sd-vae": [],
}


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": error.code, "detail": str(error), "body": error.param or "", "errors": str(error)}


Route = with_errors(_error)  # with errors in the web UI's shape
lists = APIRouter(route_class=Route)


class Settings(RequestBody):
    """Body of `POST /sdapi/v1/options`: any settings of the web UI."""

    model_config = ConfigDict(extra="allow")


@lists.get("/options")
async def settings(model: Model) -> dict[str, Any]:
    """Return the settings that clients read."""
    return _settings(model)


@lists.post("/options")
async def set_settings(request: Request, response: Response, model: Model) -> None:
    """Accept settings, none of which changes anything here."""
    body = await read_body(request, Settings)
    given: dict[str, Any] = body.model_extra or {}
    if isinstance(name := given.get(MODEL), str):
        model.check(name)
    now = _settings(model)
    changed = (name for name, value in given.items() if value is not None and value != now.get(name))
    response.headers.update(ignored_header(changed))


@lists.get("/sd-models")
async def models(model: Model) -> list[dict[str, Any]]:
    """List the names of the model that is served."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in model.names
    ]


@lists.get("/loras")
async def loras(jobs: Jobs) -> list[dict[str, Any]]:
    """List the LoRAs that a prompt may name."""
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in jobs.loras]


@lists.post("/refresh-checkpoints")
@lists.post("/refresh-loras")
@lists.post("/refresh-vae")
@lists.post("/skip")
async def do_nothing(request: Request) -> None:
    """Accept what changes nothing here: lists are read when the server starts."""
    refuse_pages(request)


def _list(name: str) -> Callable[[], Awaitable[Any]]:
    async def choices() -> Any:
        return LISTS[name]

    return choices


for _name in LISTS:
    lists.add_api_route(f"/{_name}", _list(_name))


def _settings(model: ServedModel) -> dict[str, Any]:
    return {
        MODEL: model.name,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }
