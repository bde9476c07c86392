"""Errors in the shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}.

Knows the status of each exception; not what raised it.
"""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from engine.errors import InvalidRequest, ZImageError
from server.errors import IdempotencyKeyReused, JobNotFound, JobRefused, MemoryShort, StoreUnavailable, TooManyFollowers
from server.jobs.job import Job, JobState

log = logging.getLogger(__name__)

# codes of OpenAI's API by pydantic's types of the same errors
CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "json_invalid": "invalid_json",
    "model_type": "invalid_type",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    "string_too_long": "string_above_max_length",
    "int_type": "invalid_type",
    "int_parsing": "invalid_type",
    "float_type": "invalid_type",
    "string_type": "invalid_type",
    "bool_type": "invalid_type",
    "unsupported_value": "unsupported_value",
}
ECHO = 64  # characters of an unknown key that an error repeats
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
POLICY_VIOLATION = 1008  # close code of WebSockets
CLIENT_CLOSED_REQUEST = 499  # nginx's status; only logged, since the client has left

NO_RETRY = {"x-should-retry": "false"}  # OpenAI's client retries 409 and 5xx otherwise
# statuses by the code of a job's error; 500 for others
STATUS = {"invalid_value": 400, "deadline_exceeded": 504, "worker_unavailable": 503, "lora_unavailable": 503}
OVERLOAD = ("queue_full", "deadline_unreachable", "uploads_busy")  # codes of refusals that are 429; others are 503
STORE_RETRY_AFTER = 5  # seconds
FOLLOW_RETRY_AFTER = 5  # seconds
MEMORY_RETRY_AFTER = 10  # seconds


class ApiError(ZImageError):
    """An HTTP error: status, OpenAI's fields, and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    @property
    def type(self) -> str:
        """OpenAI's type of error."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the error in OpenAI's shape."""
        error = {
            "message": str(self),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the error as an HTTP response."""
        return JSONResponse(self.body(), self.status, self.headers)


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request of a middleware with an error, or close its WebSocket before the handshake."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
    else:
        await error.response()(scope, receive, send)


EXPECTED = (
    ApiError,
    RequestValidationError,
    InvalidRequest,
    JobNotFound,
    JobRefused,
    StoreUnavailable,
    TooManyFollowers,
    IdempotencyKeyReused,
    HTTPException,
    ClientDisconnect,
    MemoryError,
)


def install(app: FastAPI) -> None:
    """Add a handler for the expected exceptions; `RequestIdMiddleware` answers unexpected ones."""
    for kind in EXPECTED:
        app.add_exception_handler(kind, _respond)


def from_job(job: Job) -> ApiError:
    """Return the error of a job that was cancelled or failed."""
    if job.state is JobState.CANCELLED:
        return ApiError(409, "The job was cancelled.", code="job_cancelled", headers=NO_RETRY)
    assert job.error is not None
    status = STATUS.get(job.error.code, 500)
    headers = {"retry-after": "30"} if status == 503 else NO_RETRY  # a retry helps only with 503
    return ApiError(status, job.error.message, code=job.error.code, headers=headers)


def model_not_found(name: str, served: str) -> ApiError:
    message = f"The model {name[:ECHO]!r} does not exist; this server serves {served!r}."
    return ApiError(404, message, code="model_not_found", param="model")


def unknown_parameter(name: str) -> ApiError:
    name = name[:ECHO]
    return ApiError(400, f"Unknown parameter: {name!r}.", code="unknown_parameter", param=name)


def missing_parameter(name: str) -> ApiError:
    return ApiError(400, f"Missing required parameter: {name!r}.", code="missing_required_parameter", param=name)


def task_not_found() -> ApiError:
    return ApiError(404, "The task does not exist or has been deleted.", code="task_not_found")


def internal_error() -> ApiError:
    """Return the answer to an unexpected exception, without its details."""
    return ApiError(500, "Internal error; see the server's log for details.", code="internal_error")


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down; send the request again.", code="server_shutting_down")


def invalid_body(error: ValidationError) -> ApiError:
    """Return the first error of a request's body."""
    return _invalid(error.errors(include_url=False, include_input=False)[0])


def _invalid(first: Mapping[str, Any]) -> ApiError:
    """Convert an error of pydantic."""
    code = CODES.get(first["type"], "invalid_value")
    name = ".".join(str(part) for part in first["loc"])[:ECHO]
    param = name or None
    match code:
        case "invalid_json":
            message = f"The body is not valid JSON: {first['ctx']['error']}."
        case "invalid_type" if param is None:
            message = "The body must be a JSON object."
        case "unknown_parameter":
            message = f"Unknown parameter: {name!r}."
        case "missing_required_parameter":
            message = f"Missing required parameter: {param!r}."
        case _:
            message = f"Invalid {param!r}: {first['msg']}"
    return ApiError(400, message, code=code, param=param)


async def _respond(request: Request, error: Exception) -> Response:
    answer = logged(request, error)
    if request.method == "OPTIONS" and answer.status == 405:
        return Response(status_code=204, headers=answer.headers)
    return answer.response()


def logged(request: Request, error: Exception) -> ApiError:
    """Convert an exception that is EXPECTED to an HTTP error, and log it."""
    answer = translate(request, error)
    if request.method == "OPTIONS" and answer.status == 405:  # is answered
        return answer
    level = logging.ERROR if answer.status >= 500 else logging.INFO
    cause = error if isinstance(error, StoreUnavailable) else answer  # names files, which clients must not see
    log.log(level, "%d %s: %s", answer.status, answer.code, cause)
    return answer


def translate(request: Request, error: Exception) -> ApiError:
    """Convert an exception that is EXPECTED to an HTTP error."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():  # of a query; its location is ("query", name)
            first = error.errors()[0]
            return _invalid(first | {"loc": first["loc"][1:]})
        case JobNotFound():
            return task_not_found()
        case InvalidRequest():
            return ApiError(400, str(error), code="invalid_value", param=error.param)
        case JobRefused(code=code, retry_after=seconds):
            headers = {"retry-after": str(max(1, math.ceil(seconds)))}
            return ApiError(429 if code in OVERLOAD else 503, str(error), code=code, headers=headers)
        case StoreUnavailable():
            message = "The job store is unavailable; see the server's log. Try again later."
            return ApiError(503, message, code="store_unavailable", headers={"retry-after": str(STORE_RETRY_AFTER)})
        case TooManyFollowers():
            headers = {"retry-after": str(FOLLOW_RETRY_AFTER)}
            return ApiError(429, str(error), code="too_many_followers", headers=headers)
        case MemoryError():
            message = "The server is short of memory; try again later."
            return ApiError(503, message, code=MemoryShort.code, headers={"retry-after": str(MEMORY_RETRY_AFTER)})
        case IdempotencyKeyReused():
            message = "The idempotency key was already used with another body."
            return ApiError(422, message, code="idempotency_key_reused", param="Idempotency-Key")
        case ClientDisconnect():
            message = "The client disconnected; the request was cancelled."
            return ApiError(CLIENT_CLOSED_REQUEST, message, code="client_closed_request")
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            message = f"{phrase}: {request.method[:ECHO]} {request.scope['path'][:ECHO]!r}"
            code = phrase.lower().replace(" ", "_")
            allowed = {"allow": _allowed(request)} if error.status_code == 405 else None
            return ApiError(error.status_code, message, code=code, headers=allowed)
    raise AssertionError(f"no HTTP error for {type(error).__name__}")


def _allowed(request: Request) -> str:
    """Return the methods of a path, which several routes may serve. HEAD and OPTIONS are answered without routes."""

    def serves(method: str) -> bool:
        scope = dict(request.scope) | {"method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    found = {method for method in METHODS if serves(method)} | {"OPTIONS"}
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))
