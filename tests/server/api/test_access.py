"""API keys and rate limits."""

from collections.abc import Iterator

import httpx
import openai
import pytest
from fakes.loop import FakeLoop
from fakes.server import IMAGES, serving

from server.api.access import AccessPolicy

KEYS = ("first-key", "second-key")
BODY = {"prompt": "a cat", "num_inference_steps": 1}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeLoop(), policy=AccessPolicy(KEYS)) as url:
        yield url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic first-key"},
        {"x-api-key": ""},
        {"x-api-key": "first-ke"},
        {"authorization": b"Bearer \xff\xfe"},
    ],
)
def test_missing_or_wrong_key_is_401_except_for_probes_and_models(http: httpx.Client, headers: dict[str, str]) -> None:
    for method, path in (
        ("POST", IMAGES),
        ("POST", "/v1/generate"),
        ("POST", "/api/v1/generate"),
        ("GET", "/v1/tasks"),
        ("DELETE", "/v1/task/x"),
    ):
        response = http.request(method, path, headers=headers, json=BODY if method == "POST" else None)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        assert http.get(path).status_code == 200


def test_official_client_is_let_in_with_a_valid_key_only(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[0], max_retries=0) as client:
        assert client.images.generate(prompt="a cat").data
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.images.generate(prompt="a cat")
    assert httpx.post(url + IMAGES, json=BODY, headers={"x-api-key": KEYS[0]}).status_code == 200


def test_tasks_of_other_owners_are_neither_listed_nor_deleted(http: httpx.Client) -> None:
    mine, other = ({"authorization": f"Bearer {key}"} for key in KEYS)
    task = http.post("/v1/generate", json=BODY | {"prompt": "mine"}, headers=mine).json()["task_id"]
    tasks = [http.get("/v1/tasks", headers=owner).json()["tasks"] for owner in (mine, other)]
    listed = [[task["prompt"] for task in found] for found in tasks]
    assert "mine" in listed[0] and "mine" not in listed[1]
    assert http.delete(f"/v1/task/{task}", headers=other).status_code == 404
    assert http.get(f"/v1/task/{task}").status_code == 200  # its id is enough
    key = {"idempotency-key": "same"}
    answers = [http.post(IMAGES, json=BODY, headers=owner | key) for owner in (mine, other, mine)]
    jobs = [answer.headers["x-job-id"] for answer in answers]
    assert jobs[0] == jobs[2] != jobs[1]


def test_exceeded_rate_is_429_with_retry_after() -> None:
    policy = AccessPolicy(KEYS, "2/minute")
    with serving(FakeLoop(), policy=policy) as url, httpx.Client(base_url=url) as http:
        first, second = ({"authorization": f"Bearer {key}"} for key in KEYS)
        answers = [http.post(IMAGES, json=BODY, headers=first) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60
        assert http.post(IMAGES, json=BODY, headers=second).status_code == 200
        assert http.get("/v1/tasks", headers=first).status_code == 200  # only images are counted
    with serving(FakeLoop(), policy=AccessPolicy(rate="1/hour")) as url:
        assert [httpx.post(url + IMAGES, json=BODY).status_code for _ in range(2)] == [200, 429]  # by address


@pytest.mark.parametrize(
    "wrong", [{"keys": ("",)}, {"keys": (" ",)}, {"keys": ("schlüssel",)}, {"rate": "often"}, {"rate": "3 per"}]
)
def test_invalid_policy_is_refused_and_keys_are_not_in_its_repr(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        AccessPolicy(**wrong)
    assert "secret" not in repr(AccessPolicy(("secret",)))


def test_without_keys_tasks_are_known_by_id_only_unless_the_history_is_shared() -> None:
    for shared in (False, True):
        with serving(FakeLoop(), policy=AccessPolicy(shared_history=shared)) as url, httpx.Client(base_url=url) as http:
            task = http.post("/v1/generate", json={"prompt": "a cat"}).json()["task_id"]
            http.get(f"/v1/task/{task}/events")  # until its end
            listed = http.get("/v1/tasks").json()
            assert [found["task_id"] for found in listed["tasks"]] == ([task] if shared else [])
            assert listed["has_more"] is False
            assert http.get(f"/v1/task/{task}").json()["status"] == "done"
            assert http.delete(f"/v1/task/{task}").status_code == 200
            assert http.get(f"/v1/task/{task}").status_code == 404
