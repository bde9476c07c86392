"""The OpenAPI document, completed with what FastAPI does not see: bodies, errors, headers and API keys.

Bodies are read by `body.read_body`, errors are raised below the routes, headers are added by middleware. Routes declare
their own parts (`request_body`, `error_responses`, ...); `install` adds what is common to all. Knows no jobs.
"""

import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Path
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from engine.request import ImageKind
from server.api.access import AccessPolicy
from server.api.schemas import ErrorAnswer
from server.api.submit import MAX_KEY

Content = dict[str, Any]
Responses = dict[int | str, Content]

ABOUT = (
    "Images from text, with Z-Image-Turbo. A field that is null counts as absent; a field that cannot change the image"
    " is accepted and named in X-Ignored-Parameters. HEAD is answered wherever GET is; OPTIONS names the methods of a"
    " path. JSON may be compressed with gzip."
)
SCHEMAS = "#/components/schemas/"
SECTION = "\n\nAttributes:"  # of a class' docstring; not for readers of the document
ERRORS = {
    400: "A parameter is invalid or unknown, or the plans cannot generate the image",
    401: "The API key is missing or invalid",
    404: "The resource does not exist or has been deleted; or the server refuses models that it does not serve",
    408: "The body took too long to arrive",
    409: "The job was cancelled",
    413: "The body is too large",
    415: "The content type or the content encoding is none that the endpoint takes",
    422: "The Idempotency-Key was already used with another body",
    429: "Too many requests, a full queue, or a deadline that cannot be met",
    500: "The server or its worker failed; a retry helps only if the code is internal_error",
    503: "The server cannot do this now; try again later",
    504: "The deadline passed",
}
SUBMITTING = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
GENERATING = (*SUBMITTING, 409, 504)


def _header(about: str, *, required: bool = True, **schema: Any) -> Content:
    return {"description": about, "required": required, "schema": {"type": "string"} | schema}


REQUEST_ID = {"x-request-id": _header("id of the request in the server's log; the client's own is kept")}
HEADERS = {name: {"$ref": f"#/components/headers/{name}"} for name in REQUEST_ID}  # of every response
JOB = {
    "x-job-id": _header("id of the job"),
    "x-model": _header("name of the model that is served"),
    "x-ignored-parameters": _header("names of fields that cannot change the images", required=False),
    "x-image-notes": _header("how the image to start from was read, such as its first frame only", required=False),
}
TIMING = {"server-timing": _header("milliseconds per stage", required=False)}  # not known when a stream begins
ERROR_HEADERS = {
    401: {"www-authenticate": _header("authentication scheme", const="Bearer")},
    429: {"retry-after": _header("seconds to wait", pattern="^[0-9]+$")},
    503: {"retry-after": _header("seconds to wait", required=False, pattern="^[0-9]+$")},
}
PARAMETERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Key for safe retries; a request with the same key and body gets the images of the first",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    }
]
KEYS = {"bearer": {"type": "http", "scheme": "bearer"}, "key": {"type": "apiKey", "in": "header", "name": "x-api-key"}}


def request_body(body: type[BaseModel], files: Collection[str] = ()) -> Content:
    """Return `openapi_extra` of a route that submits jobs: its body, and the header Idempotency-Key.

    Args:
        files: fields that are files if the body comes as a form; empty if it is always JSON.
    """
    fields = {"$ref": SCHEMAS + body.__name__}
    content: Content = {"application/json": {"schema": fields}}
    if files:
        properties = {name: {"type": "string", "format": "binary"} for name in files}
        content = {"multipart/form-data": {"schema": {"allOf": [fields, {"properties": properties}]}}} | content
    return {"requestBody": {"required": True, "content": content}, "parameters": PARAMETERS}


def error_responses(*statuses: int) -> Responses:
    """Return `responses` with errors in OpenAI's shape."""
    return {status: {"description": ERRORS[status]} for status in statuses}


def submission_responses(links: Content) -> Responses:
    """Return `responses` of a route that queues a task."""
    return error_responses(*SUBMITTING) | {200: {"headers": JOB, "links": links}}


def generation_responses(stream: type[BaseModel] | None = None) -> Responses:
    """Return `responses` of a route that waits for images; with `stream`, also as a stream of these events."""
    content = {} if stream is None else _events(stream)
    return error_responses(*GENERATING) | {200: {"headers": JOB | TIMING, "content": content}}


def event_responses(event: type[BaseModel]) -> Responses:
    """Return `responses` of a route that sends server-sent events with data of one model."""
    return {200: {"content": _events(event)}}


def links_to(path: str, name: str, *methods: str) -> Content:
    """Return links from a field of a response to the operations of a path with a parameter of this name."""
    pointer = "#/paths/" + path.replace("/", "~1")
    parameters = {name: f"$response.body#/{name}"}
    return {method: {"operationRef": f"{pointer}/{method}", "parameters": parameters} for method in methods}


def path_parameter(pattern: re.Pattern[str]) -> Any:
    """Return a path parameter with a documented pattern; the route answers other values with 404."""
    return Path(json_schema_extra={"pattern": f"^({pattern.pattern})$"})


def image_responses() -> Responses:
    """Return `responses` of a route that sends an image."""
    kinds = (f"image/{kind}" for kind in get_args(ImageKind))
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {200: {"content": content, "headers": {"cache-control": _header("images do not change")}}}


def install(app: FastAPI, policy: AccessPolicy, *models: type[BaseModel]) -> None:
    """Complete `/openapi.json` with errors, headers, API keys and the schemas of `models`."""

    def document() -> Content:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, policy, models)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _events(event: type[BaseModel]) -> Content:
    data = {"type": "string", "contentMediaType": "application/json"}
    schema = data | {"contentSchema": {"$ref": SCHEMAS + event.__name__}}
    item = {"type": "object", "properties": {"event": {"type": "string"}, "data": schema}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": item}}


def _document(app: FastAPI, policy: AccessPolicy, models: tuple[type[BaseModel], ...]) -> Content:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document["components"]
    components["schemas"] |= _schemas(*models, ErrorAnswer)
    for schema in components["schemas"].values():
        if "description" in schema:
            schema["description"] = schema["description"].split(SECTION)[0]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's shape of errors
        components["schemas"].pop(name, None)
    components["headers"] = REQUEST_ID
    components["responses"] = {_name(status): _error(status) for status in ERRORS if status != 401 or policy.keys}
    if policy.keys:
        components["securitySchemes"] = KEYS
    for operations in document["paths"].values():
        for operation in operations.values():
            _complete(operation, policy)
    return document


def _schemas(*models: type[BaseModel]) -> Content:
    """Return the JSON schemas of models and of the models in their fields, by name."""
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS + "{model}")
    named: Content = schemas["$defs"]
    return named


def _complete(operation: Content, policy: AccessPolicy) -> None:
    answers = operation["responses"]
    if "content" in answers.get("422", {}):  # FastAPI's validation error, which is a 400 here
        del answers["422"]
        answers["400"] = {"description": ERRORS[400]}
    if "401" in answers and policy.keys:
        operation["security"] = [{name: []} for name in KEYS]
    elif "401" in answers:
        del answers["401"]
    answers.setdefault("500", {})
    for status, answer in answers.items():
        if int(status) >= 400 and "content" not in answer:
            answers[status] = {"$ref": f"#/components/responses/{_name(int(status))}"}
            continue
        answer.setdefault("description", ERRORS.get(int(status), ""))
        answer["headers"] = HEADERS | answer.get("headers", {})


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _error(status: int) -> Content:
    content = {"application/json": {"schema": {"$ref": SCHEMAS + ErrorAnswer.__name__}}}
    headers = HEADERS | ERROR_HEADERS.get(status, {})
    return {"description": ERRORS[status], "headers": headers, "content": content}
