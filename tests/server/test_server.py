"""Models, health checks, unknown routes and request ids, over real HTTP."""

import httpx
import openai
import pytest
from fakes.loop import MODEL
from fakes.server import IMAGES, error_of


def test_models_list_and_retrieve_the_served_model(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert (listed.id, listed.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == listed  # a name with a slash


def test_health_and_ready_are_200_with_a_report(http: httpx.Client) -> None:
    for probe in ("/health", "/ready"):
        report = http.get(probe).json()
        assert report.pop("detail") is None and report.pop("workers") == []
        (device,) = report.pop("devices")
        assert device["is_ready"] and device["starts"] == 1 and device["jobs"] == 0 and device["host"] is None
        assert report == {"status": "ok", "model": MODEL, "precision": "fp16", "flavor": "onnx"}
        assert http.head(probe).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/images/edit", 404, "not_found"),
        ("GET", "/v1/images/generations/", 404, "not_found"),
        ("GET", IMAGES, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_unknown_route_or_method_is_404_or_405(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert ("allow" in response.headers) == (status == 405)


def test_long_path_is_not_repeated_in_the_error(http: httpx.Client) -> None:
    assert len(http.get("/" + "a" * 20_000).content) < 1000


def test_newline_in_a_path_does_not_start_a_log_line(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        http.get("/x%0aERROR: forged")
    assert any("forged" in record.getMessage() for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/v1/images/none", "/nothing"])
def test_every_response_forbids_guessing_its_type(http: httpx.Client, path: str) -> None:
    assert http.get(path).headers.get_list("x-content-type-options") == ["nosniff"]


def test_response_keeps_a_safe_request_id_and_replaces_others(http: httpx.Client) -> None:
    def id_for(given: str) -> str:
        return http.get("/health", headers={"x-request-id": given}).headers["x-request-id"]

    assert id_for("trace-1.a:b_2") == "trace-1.a:b_2"
    assert id_for("two words").startswith("req_")
    assert id_for("x" * 129).startswith("req_")
    assert id_for("") != id_for("")
