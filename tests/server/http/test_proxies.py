"""Public addresses and clients of requests, from headers of proxies and from --public-url."""

import json
from collections.abc import Iterator
from socket import create_connection

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.processes import ROOT
from fakes.server import HOSTS, IMAGES, serving
from websockets.sync.client import connect

from server.api.access import AccessPolicy
from server.api.public_address import PublicAddress
from server.http.host_names import HostNames
from server.http.proxies import TrustedProxies
from server.serving import ServerOptions, _host_names

PROXIES = ("127.0.0.1",)
FORWARDED = {"x-forwarded-proto": "https", "x-forwarded-host": "images.test", "x-forwarded-prefix": "/generate"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeLoop(), trusted_proxies=PROXIES) as url:
        yield url


def roots(url: str, headers: dict[str, str]) -> set[str]:
    """Return the roots of all URLs that the server's answers give to a client: images, tasks and their events."""
    body = {"prompt": "a cat", "num_inference_steps": 1}
    headers = {"host": httpx.URL(url).netloc.decode()} | headers
    with httpx.Client(base_url=url, headers=headers, timeout=10) as http:
        image = http.post(IMAGES, json=body | {"response_format": "url"}).json()["data"][0]["url"]
        task = http.post("/v1/generate", json=body).json()["task_id"]
        lines = http.get(f"/v1/task/{task}/events").text.splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        uri, port = f"ws://{http.headers['host']}/v1/task/{task}/ws", httpx.URL(url).port
        more = {name: value for name, value in headers.items() if name != "host"}
        with connect(uri, sock=create_connection(("127.0.0.1", port)), additional_headers=more) as socket:
            messages = [json.loads(message) for message in socket]
        answers = [http.get(f"/v1/task/{task}").json(), events[-1]["task"], messages[-1]["task"]]
        paths = [image, *(answer["result"]["paths"][0] for answer in answers)]
    assert all(path.count("/v1/images/job_") == 1 for path in paths)
    return {path.partition("v1/images/")[0] for path in paths}


@pytest.mark.parametrize(
    ("headers", "root"),
    [
        ({}, "{url}/"),
        ({"host": "images.test:81"}, "http://images.test:81/"),
        (FORWARDED, "https://images.test/generate/"),
        ({"host": "images.test"} | {"x-forwarded-proto": "wss"}, "https://images.test/"),
        ({"x-forwarded-host": "images.test:8443, generate.example"}, "http://images.test:8443/"),
        ({"x-forwarded-proto": "https, http"}, "{https}/"),
        ({"x-forwarded-prefix": "/a, /b/"}, "{url}/a/b/"),
        ({"x-forwarded-prefix": "//evil.example"}, "{url}/"),
        ({"x-forwarded-prefix": "/a?b"}, "{url}/"),
        ({"x-forwarded-proto": "javascript"}, "{url}/"),
    ],
)
def test_every_url_in_answers_is_at_the_address_that_the_proxy_tells(
    url: str, headers: dict[str, str], root: str
) -> None:
    assert roots(url, headers) == {root.format(url=url, https=url.replace("http", "https"))}


def test_forwarded_headers_of_strangers_change_nothing() -> None:
    with serving(FakeLoop()) as url:
        assert roots(url, FORWARDED) == {f"{url}/"}


def test_public_url_is_the_address_in_every_answer() -> None:
    public = PublicAddress.parse("https://images.test/generate/")
    with serving(FakeLoop(), trusted_proxies=PROXIES, public_url=public) as url:
        for headers in ({}, {"host": "a"}, {"x-forwarded-host": "a", "x-forwarded-prefix": "/other"}):
            assert roots(url, headers) == {"https://images.test/generate/"}


@pytest.mark.parametrize("text", ["images.test", "ftp://images.test", "https://a b", "https://a?b", "https://u@a", ""])
def test_public_url_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a URL such as"):
        PublicAddress.parse(text)


def test_public_url_is_in_the_form_of_an_origin() -> None:
    assert PublicAddress.parse("HTTPS://Images.Test:443").root == "https://images.test/"
    assert PublicAddress.parse("http://[::1]:443/a/b/").root == "http://[::1]:443/a/b/"


def test_host_of_the_public_url_is_one_of_the_server_s_names() -> None:
    options = ServerOptions(public_url=PublicAddress.parse("https://images.test:8443/x"))
    assert "images.test" in (_host_names("127.0.0.1", options).valid or ())
    assert _host_names("0.0.0.0", options) == HostNames("0.0.0.0")  # every name, as without it


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("", None),
        ("192.0.2.1", "192.0.2.1"),
        ("203.0.113.9, 192.0.2.1", "192.0.2.1"),  # the client wrote the first one
        ("192.0.2.1, 127.0.0.1, ::ffff:10.0.0.7", "192.0.2.1"),
        ("192.0.2.1:4711, 10.0.0.7", "192.0.2.1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("10.0.0.1, 127.0.0.1", "10.0.0.1"),
        (" , unknown,", "unknown"),
    ],
)
def test_client_is_the_last_address_before_the_proxies(forwarded: str, client: str | None) -> None:
    assert TrustedProxies(("127.0.0.1", "10.0.0.0/8")).client(forwarded) == client


def test_rate_counts_by_the_client_of_the_proxy() -> None:
    with serving(FakeLoop(), policy=AccessPolicy(rate="1/hour"), trusted_proxies=PROXIES) as url:
        claims = ("192.0.2.1", "203.0.113.9, 192.0.2.1:81", "192.0.2.1, 192.0.2.2")
        answers = [httpx.post(url + IMAGES, json={"prompt": "a"}, headers={"x-forwarded-for": c}) for c in claims]
    assert [answer.status_code for answer in answers] == [200, 429, 200]


def test_only_names_of_the_server_are_believed_from_proxies(url: str) -> None:
    assert "generate.example" in HOSTS
    for forwarded, status in (("generate.example, evil.example", 200), ("evil.example, generate.example", 421)):
        assert httpx.get(f"{url}/v1/models", headers={"x-forwarded-host": forwarded}).status_code == status


def test_no_url_is_made_from_the_request_s_own_address() -> None:
    """starlette's `base_url` knows neither prefixes nor --public-url, and is ws:// for WebSockets."""
    sources = [file for file in (ROOT / "server").rglob("*.py") if ".base_url" in file.read_text()]
    assert sources == []
