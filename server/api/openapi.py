"""The OpenAPI document: what FastAPI cannot see of the routes.

Bodies are read by hand (`connection.read`), errors are raised far from the routes, headers are added by middleware.
Routes name what concerns them (`takes`, `fails`, ...); `install` adds what concerns all. Knows no jobs.
"""

import re
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Path
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from engine.request import ImageKind
from server.api.access import Access
from server.api.openai_schemas import ErrorAnswer
from server.api.submit import MAX_KEY

Content = dict[str, Any]
Responses = dict[int | str, Content]

SCHEMAS = "#/components/schemas/"
ERRORS = {
    400: "A parameter is wrong, unknown, or asks for what the plans do not generate",
    401: "No valid API key came",
    404: "There is no such thing, or there is none any more",
    408: "The body took too long to arrive",
    409: "The job was cancelled",
    413: "The body is too large",
    415: "The body is not declared as application/json",
    422: "The Idempotency-Key came before, with another body",
    429: "Too many requests, a full queue, or a deadline that cannot be met",
    500: "The server or its worker failed; a code other than internal_error will come again",
    503: "The server cannot do this now",
    504: "The deadline passed",
}
SUBMITTING = (400, 401, 408, 413, 415, 422, 429, 500, 503)
GENERATEING = (*SUBMITTING, 409, 504)


def _header(about: str, *, required: bool = True, **schema: Any) -> Content:
    return {"description": about, "required": required, "schema": {"type": "string"} | schema}


REQUEST_ID = {"x-request-id": _header("stands in the server's log; one that came with the request is kept")}
HEADERS = {name: {"$ref": f"#/components/headers/{name}"} for name in REQUEST_ID}  # of every answer
JOB_ID = {"x-job-id": _header("of the job that generated, or generates")}
TIMING = {"server-timing": _header("milliseconds by stage", required=False)}  # a stream begins before they are known
ERROR_HEADERS = {
    401: {"www-authenticate": _header("the scheme", const="Bearer")},
    429: {"retry-after": _header("seconds", pattern="^[0-9]+$")},
    503: {"retry-after": _header("seconds", required=False, pattern="^[0-9]+$")},
}
PARAMETERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A request that comes again with the same key and body finds the first one's images",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    }
]
KEYS = {"bearer": {"type": "http", "scheme": "bearer"}, "key": {"type": "apiKey", "in": "header", "name": "x-api-key"}}


def takes(body: type[BaseModel]) -> Content:
    """For `openapi_extra`: the body that `connection.read` reads, and what `intake.accept` reads of the headers."""
    content = {"application/json": {"schema": {"$ref": SCHEMAS + body.__name__}}}
    return {"requestBody": {"required": True, "content": content}, "parameters": PARAMETERS}


def fails(*statuses: int) -> Responses:
    """For `responses`, as all that follows: errors, in OpenAI's shape."""
    return {status: {"description": ERRORS[status]} for status in statuses}


def submits(links: Content) -> Responses:
    """Takes a task."""
    return fails(*SUBMITTING) | {200: {"links": links}}


def generates(stream: type[BaseModel] | None = None) -> Responses:
    """Answers when images are generated; with `stream`, also as a stream of these events."""
    content = {} if stream is None else _events(stream)
    return fails(*GENERATEING) | {200: {"headers": JOB_ID | TIMING, "content": content}}


def streams(event: type[BaseModel]) -> Responses:
    """Answers with server-sent events, whose data are one model's."""
    return {200: {"content": _events(event)}}


def leads_to(name: str, path: str, *methods: str) -> Content:
    """Links from a field of an answer to the operations of a path that has a parameter of this name."""
    pointer = "#/paths/" + path.replace("/", "~1")
    parameters = {name: f"$response.body#/{name}"}
    return {method: {"operationRef": f"{pointer}/{method}", "parameters": parameters} for method in methods}


def matching(pattern: re.Pattern[str]) -> Any:
    """A path parameter of which only this matches anything; said in the document, told by a 404."""
    return Path(json_schema_extra={"pattern": f"^({pattern.pattern})$"})


def images() -> Responses:
    """Answers with an image."""
    kinds = (f"image/{kind}" for kind in get_args(ImageKind))
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {200: {"content": content, "headers": {"cache-control": _header("it does not change")}}}


def install(app: FastAPI, access: Access, *models: type[BaseModel]) -> None:
    """Makes `/openapi.json` tell of errors, headers and keys, and of `models`, which routes only name."""

    def document() -> Content:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, access, models)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _events(event: type[BaseModel]) -> Content:
    data = {"type": "string", "contentMediaType": "application/json"}
    schema = data | {"contentSchema": {"$ref": SCHEMAS + event.__name__}}
    item = {"type": "object", "properties": {"event": {"type": "string"}, "data": schema}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": item}}


def _document(app: FastAPI, access: Access, models: tuple[type[BaseModel], ...]) -> Content:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document["components"]
    components["schemas"] |= _schemas(*models, ErrorAnswer)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of errors
        components["schemas"].pop(name, None)
    components["headers"] = REQUEST_ID
    components["responses"] = {_name(status): _error(status) for status in ERRORS if status != 401 or access.keys}
    if access.keys:
        components["securitySchemes"] = KEYS
    for operations in document["paths"].values():
        for method, operation in operations.items():
            _complete(operation, access, has_content=method != "head")
    return document


def _schemas(*models: type[BaseModel]) -> Content:
    """Their JSON schemas and those of what is in them, by name."""
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS + "{model}")
    named: Content = schemas["$defs"]
    return named


def _complete(operation: Content, access: Access, *, has_content: bool) -> None:
    answers = operation["responses"]
    if "content" in answers.get("422", {}):  # FastAPI's own, which is a 400 here
        del answers["422"]
        answers["400"] = {"description": ERRORS[400]}
    if "401" in answers and access.keys:
        operation["security"] = [{name: []} for name in KEYS]
    elif "401" in answers:
        del answers["401"]
    answers.setdefault("500", {})
    for status, answer in answers.items():
        if has_content and int(status) >= 400 and "content" not in answer:
            answers[status] = {"$ref": f"#/components/responses/{_name(int(status))}"}
            continue
        answer.setdefault("description", ERRORS.get(int(status), ""))
        answer["headers"] = HEADERS | answer.get("headers", {})
        if not has_content:
            answer.pop("content", None)


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _error(status: int) -> Content:
    content = {"application/json": {"schema": {"$ref": SCHEMAS + ErrorAnswer.__name__}}}
    headers = HEADERS | ERROR_HEADERS.get(status, {})
    return {"description": ERRORS[status], "headers": headers, "content": content}
