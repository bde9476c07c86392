"""The files of the page over HTTP: headers, caching, compression, and what is no file of the page."""

import re
from collections.abc import Iterator

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.server import serving

from server.page.mount import STATIC

NAMES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeLoop(), page=True) as url:
        yield url


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_a_type_and_a_policy_without_inline_scripts(url: str, name: str) -> None:
    answer = httpx.get(f"{url}/page/{name}")
    assert answer.status_code == 200 and answer.content == (STATIC / name).read_bytes()
    assert answer.headers["content-type"].split(";")[0] in ("text/html", "text/css", "text/javascript", "image/svg+xml")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy


def test_file_is_sent_again_only_if_it_has_changed(url: str) -> None:
    first = httpx.get(f"{url}/", headers={"accept-encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip" and first.headers["cache-control"] == "no-cache"
    plain = httpx.get(f"{url}/", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.text == first.text
    for known in (first.headers["etag"], f'"other", {first.headers["etag"]}', "*"):
        again = httpx.get(f"{url}/", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(f"{url}/", headers={"if-none-match": 'W/"other"'}).status_code == 200
    assert httpx.head(f"{url}/page/main.js").status_code == 200


@pytest.mark.parametrize(
    "name", ["", "none.js", "../mount.py", "..%2fmount.py", "%2e%2e/mount.py", "messages", "a" * 5000]
)
def test_nothing_but_the_page_s_files_can_be_read(url: str, name: str) -> None:
    answer = httpx.get(f"{url}/page/{name}")
    assert answer.status_code == 404 and "error" in answer.json()


def test_page_can_be_left_out() -> None:
    with serving(FakeLoop()) as url:
        assert httpx.get(f"{url}/").status_code == httpx.get(f"{url}/page/main.js").status_code == 404


def test_page_has_no_inline_script_and_only_relative_addresses() -> None:
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", html)
    assert not re.findall(r'(?:src|href)="(?:/|[a-z]+:)', html)
