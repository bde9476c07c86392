"""Task submission with the parameters in the URL, `POST /v1/generate?prompt=...`.

The first deployments of Z-Image-Turbo declared their parameters as plain arguments of a FastAPI function, which reads
them from the query. A request without `prompt` in its URL goes to the endpoint with a JSON body.
"""

from collections import Counter
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.routing import Match
from starlette.types import Scope

from server.api import errors, tasks
from server.api.dialects.routes import refuse_body, refuse_pages
from server.api.submit import Jobs, Owner
from server.api.task_schemas import GenerateRequest, Submitted


class QueryRoute(APIRoute):
    """A route for requests with a prompt in their URL; others are left to the routes after it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and b"prompt=" not in scope["query_string"]:
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(route_class=QueryRoute, include_in_schema=False)


@router.post("/api/v1/generate_async")
@router.post("/v1/generate")
async def submit(request: Request, response: Response, jobs: Jobs, owner: Owner) -> Submitted:
    """Submit a task whose parameters are in the URL."""
    refuse_pages(request)
    refuse_body(request)
    return await tasks.submit_task(request, response, jobs, owner, _body(request))


@router.post("/api/v1/generate")
async def generate(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generate images from parameters in the URL and answer with them."""
    refuse_pages(request)
    refuse_body(request)
    return await tasks.wait_for_task(request, jobs, owner, _body(request))


def _body(request: Request) -> GenerateRequest:
    """Return the parameters as the body that they stand for. Empty ones count as absent.

    Raises:
        ApiError: 400, one of them is invalid, unknown or there twice.
    """
    given = parse_qsl(request.url.query, keep_blank_values=True)
    values = {name: value for name, value in given if value}
    counts = Counter(name for name, _ in given)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise errors.ApiError(400, f"{twice[: errors.ECHO]!r} is in the URL twice.", code="invalid_value", param=twice)
    try:
        return GenerateRequest.model_validate_strings(values, strict=False)
    except ValidationError as error:
        raise errors.invalid_body(error) from error
