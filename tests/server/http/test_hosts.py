"""Requests to host names that are not the server's are refused: DNS rebinding."""

from collections.abc import Iterator

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.processes import FAKE_SERVER, process, ready_url
from fakes.raw_client import HANDSHAKE, checked_status, send
from fakes.server import IMAGES, serving

from server.http.host_names import HostNames, parse_host

EVIL = "evil.example"
PATHS = ("/", "/health", "/v1/models", "/v1/tasks", "/v1/images/x", "/page/main.js")
SOCKETS = (b"/v1/task/x/ws",)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with process(*FAKE_SERVER, "0", "1") as child:
        yield ready_url(child)


def head(url: str, host: str) -> dict[str, str]:
    """Return the headers of a browser for a page of `host` on the server's port."""
    port = url.rpartition(":")[2]
    return {"host": f"{host}:{port}", "origin": f"http://{host}:{port}", "sec-fetch-site": "same-origin"}


def test_page_of_a_rebound_name_reaches_nothing(url: str) -> None:
    with httpx.Client(base_url=url, headers=head(url, EVIL)) as http:
        answers = [http.get(path) for path in PATHS] + [http.post(IMAGES, json={"prompt": "a cat"})]
    assert {answer.status_code for answer in answers} == {421}
    for answer in answers:
        error = answer.json()["error"]
        assert error["code"] == "misdirected_request" and answer.headers["x-request-id"]
        assert EVIL in error["message"] and "localhost, 127.0.0.1, [::1]" in error["message"]
        assert "--hosts" in error["message"]


@pytest.mark.parametrize("path", SOCKETS)
def test_websocket_of_a_rebound_name_is_refused(url: str, path: bytes) -> None:
    lines = b"".join(b"\r\n%s: %s" % (name.encode(), value.encode()) for name, value in head(url, EVIL).items())
    handshake = (HANDSHAKE % path).replace(b"\r\nhost: a", lines)
    assert checked_status(handshake, send(url, handshake)) == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "[0:0:0:0:0:0:0:1]", "a"])
def test_own_names_are_served_on_any_port_and_in_any_spelling(url: str, host: str) -> None:
    for name in (host, f"{host}:1", f"{host}:"):
        assert httpx.get(f"{url}/v1/models", headers={"host": name}).status_code == 200


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"host:\r\n",
        b"host: localhost\r\nhost: localhost\r\n",
        b"host: localhost, evil.example\r\n",
        b"host: localhost@evil.example\r\n",
        b"host: localhost/evil.example\r\n",
        b"host: [::1\r\n",
        b"host: [localhost]\r\n",
        b"host: 127.1\r\n",
        b"host: localhost:8000:1\r\n",
        b"host: localhost\xff\r\n",
        b"host: " + b"a" * 50_000 + b"\r\n",
    ],
)
def test_missing_repeated_or_odd_host_is_refused(url: str, lines: bytes) -> None:
    for version in (b"1.0", b"1.1"):
        request = b"GET /v1/models HTTP/%s\r\nconnection: close\r\n%s\r\n" % (version, lines)
        answer = send(url, request)
        assert checked_status(request, answer) in (400, 421)
        assert len(answer) < 1000


def test_forwarded_host_is_ignored_from_strangers_and_checked_from_proxies() -> None:
    mine, evil = {"x-forwarded-host": "images.test"}, {"x-forwarded-host": EVIL}
    for proxies, status in (((), 200), (("127.0.0.1",), 421)):
        with serving(FakeLoop(), trusted_proxies=proxies) as url:
            assert httpx.get(f"{url}/v1/models", headers=mine).status_code == 200
            assert httpx.get(f"{url}/v1/models", headers=evil).status_code == status
            assert httpx.get(f"{url}/v1/models", headers={"host": EVIL} | mine).status_code == 421


def test_without_public_names_a_server_beyond_loopback_serves_every_name() -> None:
    with serving(FakeLoop(), hosts=HostNames("0.0.0.0")) as url:
        assert httpx.get(f"{url}/v1/models", headers={"host": EVIL}).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"host": "a b"}).status_code == 421


def test_with_public_names_a_server_beyond_loopback_serves_those_and_probes() -> None:
    with serving(FakeLoop(), hosts=HostNames("0.0.0.0", ("Images.Test:443",))) as url:
        statuses = {
            (path, host): httpx.get(url + path, headers={"host": host}).status_code
            for path in ("/health", "/ready", "/metrics", "/v1/models")
            for host in ("10.1.2.3:8000", "images.test", "localhost")
        }
    assert {key for key, status in statuses.items() if status != 200} == {("/v1/models", "10.1.2.3:8000")}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Images.Example.COM.:8000", "images.example.com"),
        ("[2001:DB8:0::1]:80", "[2001:db8::1]"),
        ("my_host-1", "my_host-1"),
        ("a" * 300, None),
        ("-a", None),
        ("a..", None),
        ("a b", None),
        ("", None),
        ("a\n", None),
    ],
)
def test_host_header_becomes_a_name_in_one_spelling(text: str, name: str | None) -> None:
    assert parse_host(text) == name


def test_bound_address_is_a_valid_name() -> None:
    assert HostNames("::1").valid == ("localhost", "127.0.0.1", "[::1]")
    assert "192.0.2.1" in (HostNames("192.0.2.1", ("x.example",)).valid or ())
    assert HostNames("127.0.0.2").valid == ("localhost", "127.0.0.1", "[::1]", "127.0.0.2")
    assert HostNames("::").valid is None
