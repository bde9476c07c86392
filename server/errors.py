"""Errors in the one shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}.

Knows which exception becomes which status; not what raised it.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from engine.errors import DeviceError, InvalidRequest, NonFiniteOutput

log = logging.getLogger(__name__)

# pydantic's error types by the codes that OpenAI's API gives for the same mistakes
CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "json_invalid": "invalid_json",
    "model_type": "invalid_type",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    "string_too_long": "string_above_max_length",
    "int_type": "invalid_type",
    "float_type": "invalid_type",
    "string_type": "invalid_type",
    "bool_type": "invalid_type",
    "unsupported_value": "unsupported_value",
}
FIELDS = {"height": "size", "width": "size"}  # engine's names that the request spells otherwise
ECHO = 64  # characters of an unknown key that an error repeats
CLIENT_CLOSED_REQUEST = 499  # nginx's; seen in no response, since nobody is left to read it


class ApiError(Exception):
    """An answer that is not a picture."""

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

    def response(self) -> JSONResponse:
        error = {
            "message": str(self),
            "type": "invalid_request_error" if self.status < 500 else "server_error",
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status, self.headers)


def install(app: FastAPI) -> None:
    """Answers the expected exceptions of `app`; the unexpected ones pass on to `RequestIdMiddleware`."""
    for kind in (ApiError, InvalidRequest, NonFiniteOutput, DeviceError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _answer)


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"The model {name[:ECHO]!r} does not exist.", code="model_not_found", param="model")


def internal_error() -> ApiError:
    """For what nobody expected: says nothing about the inside."""
    return ApiError(
        500, "The server had an error while processing the request; its log has the details.", code="internal_error"
    )


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down; send the request again.", code="server_shutting_down")


def invalid_body(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request's body."""
    first = error.errors(include_url=False, include_input=False)[0]
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


async def _answer(request: Request, error: Exception) -> JSONResponse:
    answer = _translate(request, error)
    level = logging.ERROR if answer.status >= 500 else logging.INFO
    log.log(level, "%s: %d %s", request.state.request_id, answer.status, answer)
    return answer.response()


def _translate(request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case InvalidRequest():
            return ApiError(400, str(error), code="invalid_value", param=FIELDS.get(error.param, error.param))
        case NonFiniteOutput():  # drawn again it comes out the same, so OpenAI's client must not retry by itself
            return ApiError(500, str(error), code="non_finite_output", headers={"x-should-retry": "false"})
        case DeviceError():
            return ApiError(503, str(error), code="device_lost" if error.sticky else "device_error")
        case ClientDisconnect():
            return ApiError(
                CLIENT_CLOSED_REQUEST, "The client hung up; drawing was stopped.", code="client_closed_request"
            )
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            message = f"{phrase}: {request.method} {request.scope['path'][:ECHO]!r}"
            code = phrase.lower().replace(" ", "_")
            return ApiError(error.status_code, message, code=code, headers=error.headers)
    raise AssertionError(f"no translation of {type(error).__name__}")
