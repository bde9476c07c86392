"""Pages of other sites: who may call the API from a browser, and what they may read."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from fakes.chromium import browsing, needs_chromium
from fakes.loop import FakeLoop
from fakes.server import IMAGES, serving

from server.api.access import AccessPolicy
from server.api.body import MAX_BODY
from server.http.origins import parse_origin
from server.jobs.embedded import EmbeddedJobs

ORIGIN, OTHER = "https://app.example.com", "https://evil.example"
KEY = {"authorization": "Bearer a-key"}
ALLOWED = "access-control-allow-origin"
ROUTES = (
    *(("POST", path) for path in (IMAGES, "/v1/generate", "/api/v1/generate", "/api/v1/generate_async")),
    *(("GET", path) for path in ("/v1/models", "/v1/models/a/b", "/v1/model_info", "/v1/tasks", "/v1/task/x")),
    *(("GET", path) for path in ("/v1/task/x/events", "/v1/images/x/0.png", "/health", "/ready", "/openapi.json")),
    ("DELETE", "/v1/task/x"),
)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    policy, origins = AccessPolicy(("a-key",)), (ORIGIN, "http://localhost:3000")
    with (
        serving(FakeLoop(), policy=policy, cors_origins=origins) as url,
        httpx.Client(base_url=url, headers={"origin": ORIGIN}) as client,
    ):
        yield client


def preflight(http: httpx.Client, method: str, path: str, origin: str = ORIGIN) -> httpx.Response:
    asked = "authorization,content-type,idempotency-key,x-stainless-lang"  # OpenAI's client for browsers sends such
    headers = {"access-control-request-method": method, "access-control-request-headers": asked, "origin": origin}
    return http.options(path, headers=headers)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_preflight_needs_no_key_and_allows_listed_origins_only(http: httpx.Client, method: str, path: str) -> None:
    answer = preflight(http, method, path)
    assert answer.status_code == 200
    assert answer.headers[ALLOWED] == ORIGIN
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    refused = preflight(http, method, path, OTHER)
    assert refused.status_code == 400
    assert ALLOWED not in refused.headers


def test_answers_expose_their_headers_to_listed_origins_only(http: httpx.Client) -> None:
    answer = http.post(IMAGES, json={"prompt": "a cat", "quality": "hd"}, headers=KEY)
    assert answer.headers[ALLOWED] == ORIGIN
    assert "Origin" in answer.headers["vary"]
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    wanted = {"x-job-id", "server-timing", "x-ignored-parameters", "retry-after", "x-request-id", "x-model"}
    assert wanted <= set(exposed)
    assert wanted - {"retry-after"} <= set(answer.headers)
    stranger = http.post(IMAGES, json={"prompt": "a cat"}, headers=KEY | {"origin": OTHER})
    assert stranger.status_code == 200  # the browser of the other site keeps it from the page
    assert ALLOWED not in stranger.headers


def test_streams_and_errors_have_cors_headers(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.stream("POST", IMAGES, json={"prompt": "a cat", "stream": True}, headers=KEY) as stream:
        assert stream.headers[ALLOWED] == ORIGIN
        assert "image_generation.completed" in stream.read().decode()
    unauthorized = http.post(IMAGES, json={"prompt": "a cat"})
    large = http.post(
        "/sdapi/v1/txt2img", content=b" " * (MAX_BODY + 1), headers=KEY | {"content-type": "application/json"}
    )
    misdirected = http.get("/v1/models", headers={"host": "unknown.example"})

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(EmbeddedJobs, "submit", broken)
    failed = http.post(IMAGES, json={"prompt": "a cat"}, headers=KEY)
    answers = {401: unauthorized, 413: large, 421: misdirected, 500: failed}
    assert {status: answer.status_code for status, answer in answers.items()} == {status: status for status in answers}
    assert all(answer.headers[ALLOWED] == ORIGIN for answer in answers.values())
    assert all(answer.headers["x-request-id"] for answer in answers.values())


def test_refusals_for_the_rate_have_cors_headers() -> None:
    with (
        serving(FakeLoop(), policy=AccessPolicy(rate="1/hour"), cors_origins=("*",)) as url,
        httpx.Client(base_url=url, headers={"origin": OTHER}) as http,
    ):
        first, second = (http.post(IMAGES, json={"prompt": "a cat"}) for _ in range(2))
        assert preflight(http, "POST", IMAGES, OTHER).headers[ALLOWED] == "*"
    assert (first.status_code, second.status_code) == (200, 429)
    for answer in (first, second):
        assert answer.headers[ALLOWED] == "*"
        assert "access-control-allow-credentials" not in answer.headers
    assert "retry-after" in second.headers["access-control-expose-headers"].lower()


def test_without_origins_nothing_is_allowed() -> None:
    with serving(FakeLoop()) as url, httpx.Client(base_url=url, headers={"origin": ORIGIN}) as http:
        answers = [preflight(http, "POST", IMAGES), http.get("/v1/models"), http.post(IMAGES, json={"prompt": "a cat"})]
    assert [answer.status_code for answer in answers] == [204, 200, 200]
    assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("*", "*"),
        ("https://app.example.com", "https://app.example.com"),
        ("https://App.Example.com/", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("https://app.example.com:80", "https://app.example.com:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("app://obsidian.md", "app://obsidian.md"),
    ],
)
def test_origin_is_written_as_browsers_write_it(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize("text", ["app.example.com", "https://", "https://a/b", "https://u@a", "https://*.a/x", "null"])
def test_text_that_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be origins such as https://app\.example\.com"):
        parse_origin(text)


FETCH = """
const [url, done] = arguments;
const options = {method: "POST", headers: {"content-type": "application/json", "authorization": "Bearer a-key"}};
const ask = async () => {
    const answer = await fetch(url, {...options, body: JSON.stringify({prompt: "a cat", seed: 7, quality: "hd"})});
    const stream = await fetch(url, {...options, body: JSON.stringify({prompt: "a cat", stream: true})});
    return {
        seed: (await answer.json()).data[0].seed,
        ignored: answer.headers.get("x-ignored-parameters"),
        job: answer.headers.get("x-job-id"),
        events: await stream.text(),
    };
};
ask().then(done, error => done({error: error.name}));
"""


class BlankPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@needs_chromium
def test_browser_lets_only_pages_of_listed_origins_call_the_api(tmp_path: Path) -> None:
    site = ThreadingHTTPServer(("127.0.0.1", 0), BlankPage)
    threading.Thread(target=site.serve_forever).start()
    listed, other = (f"http://{host}:{site.server_port}" for host in ("127.0.0.1", "localhost"))
    policy = AccessPolicy(("a-key",))
    try:
        with serving(FakeLoop(), policy=policy, cors_origins=(listed,)) as url, browsing(tmp_path) as browser:
            browser.driver.get(listed)
            seen = browser.driver.execute_async_script(FETCH, url + IMAGES)
            browser.driver.get(other)
            refused = browser.driver.execute_async_script(FETCH, url + IMAGES)
    finally:
        site.shutdown()
        site.server_close()
    assert (seen["seed"], seen["ignored"], seen["job"][:4]) == (7, "quality", "job_")
    assert "image_generation.completed" in seen["events"]
    assert refused == {"error": "TypeError"}
