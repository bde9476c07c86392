"""`/openapi.json` describes what the server does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.processes import PYTHONPATH, TESTS
from fakes.server import IMAGES, serving

from server.api.access import AccessPolicy

CONFIG = TESTS / "schemathesis.toml"
KEY = "a-key"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeLoop()) as url:
        yield url


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    return found


@pytest.mark.slow
def test_schemathesis_finds_no_violation_of_the_document() -> None:
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "PYTHONHASHSEED": "0"}
    with serving(FakeLoop(), policy=AccessPolicy((KEY,))) as url:
        command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIG}", "run", f"{url}/openapi.json"]
        command += ["--no-color", "--max-examples=3", "--header", f"Authorization: Bearer {KEY}"]
        command += ["--exclude-path=/api/v1/generate_async"]  # which is /v1/generate
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_all_references_resolve(document: dict[str, Any]) -> None:
    def check(node: Any) -> None:
        if isinstance(node, dict):
            if reference := node.get("$ref") or node.get("operationRef"):
                found: Any = document
                for part in reference.removeprefix("#/").split("/"):
                    found = found[part.replace("~1", "/")]
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                check(item)

    check(document)


def test_all_errors_have_openai_s_shape_and_all_responses_an_id(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    answers = document["components"]["responses"]
    schemas = [answer["content"]["application/json"]["schema"] for answer in answers.values()]
    assert schemas == [{"$ref": "#/components/schemas/ErrorAnswer"}] * len(answers)
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                assert "$ref" in answer or "x-request-id" in answer["headers"]
            assert "500" in operation["responses"]


def test_streams_images_and_metrics_have_their_media_types(document: dict[str, Any]) -> None:
    def kinds(path: str, method: str = "get") -> set[str]:
        return set(document["paths"][path][method]["responses"]["200"]["content"])

    assert kinds(IMAGES, "post") == {"application/json", "text/event-stream"}
    assert kinds("/v1/task/{task_id}/events") == {"text/event-stream"}
    assert kinds("/v1/images/{job_id}/{name}") == {"image/png", "image/jpeg", "image/webp"}
    assert kinds("/metrics") == {"text/plain"}


def test_no_description_has_sections_of_a_docstring(document: dict[str, Any]) -> None:
    def check(node: Any) -> None:
        if isinstance(node, dict):
            description = str(node.get("description", ""))
            assert "Attributes:" not in description and "Args:" not in description, description
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                check(item)

    check(document)


def test_security_schemes_are_documented_only_with_keys(document: dict[str, Any]) -> None:
    assert "securitySchemes" not in document["components"]
    assert not any("401" in one["responses"] for paths in document["paths"].values() for one in paths.values())
    with serving(FakeLoop(), policy=AccessPolicy((KEY,))) as url:
        guarded = httpx.get(f"{url}/openapi.json").json()
    schemes = guarded["components"]["securitySchemes"]
    for path, method in ((IMAGES, "post"), ("/v1/tasks", "get"), ("/v1/task/{task_id}", "delete")):
        operation = guarded["paths"][path][method]
        assert {name for needed in operation["security"] for name in needed} == set(schemes)
        assert "401" in operation["responses"]
    assert "security" not in guarded["paths"]["/v1/task/{task_id}"]["get"]


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=abc", "limit", "invalid_type"),
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=201", "limit", "integer_above_max_value"),
        ("limit=" + "9" * 5000, "limit", "invalid_value"),
        ("before=" + "9" * 20, "before", "integer_above_max_value"),
        ("before=-1", "before", "integer_below_min_value"),
        ("before=%00", "before", "invalid_type"),
        ("before=%ff", "before", "invalid_type"),
        ("before=", "before", "invalid_type"),
    ],
)
def test_invalid_query_is_400_with_its_name(url: str, query: str, param: str, code: str) -> None:
    response = httpx.get(f"{url}/v1/tasks?{query}")
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/task/job_0", "DELETE, GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        (IMAGES, "OPTIONS, POST"),
    ],
)
def test_options_and_405_name_all_methods_of_a_path(url: str, path: str, methods: str) -> None:
    answer, refused = httpx.options(url + path), httpx.put(url + path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert refused.status_code == 405
    assert answer.headers["allow"] == refused.headers["allow"] == methods
    assert httpx.options(f"{url}/unknown").status_code == 404
