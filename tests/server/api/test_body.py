"""Bodies of requests: malformed, too large, of the wrong type, and random ones."""

import gzip
import json

import httpx
import pytest
from fakes.loop import MANIFEST, FakeLoop
from fakes.raw_client import connected
from fakes.server import IMAGES, error_of, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api import body, decompression
from server.api.body import MAX_BODY
from server.api.errors import ApiError

JSON = {"content-type": "application/json; charset=utf-8"}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b'"a cat"', "invalid_type"),
        (b'{"prompt": "a cat", "n": ' + b"9" * 10_000 + b"}", "invalid_json"),
        (b'{"prompt": "a cat", "n": ' + b"9" * 4_000 + b"}", "integer_above_max_value"),
        (json.dumps({"k" * 100_000: 1, "prompt": "a cat"}).encode(), "unknown_parameter"),
    ],
)
def test_malformed_body_is_400_with_a_short_message(http: httpx.Client, content: bytes, code: str) -> None:
    response = http.post(IMAGES, content=content, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["code"] == code
    assert len(response.content) < 1000


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_content_type_that_browsers_send_across_origins_is_415(http: httpx.Client, kind: str | None) -> None:
    """Browsers ask before they send application/json across origins, and need not ask for these."""
    headers = {} if kind is None else {"content-type": kind}
    response = http.post(IMAGES, content=b'{"prompt": "a cat"}', headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


def test_empty_parameter_name_is_unknown(http: httpx.Client) -> None:
    response = http.post(IMAGES, content=b'{"prompt": "a cat", "": 1}', headers=JSON)
    assert error_of(response)["message"] == "Unknown parameter: ''."


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_gzip_body_is_decompressed(http: httpx.Client, encoding: str, byte_by_byte: bool) -> None:
    data = gzip.compress(b'{"prompt": "a cat", "seed": 7}'.ljust(2000))
    parts = [data[at : at + 1] for at in range(len(data))] if byte_by_byte else [data]
    headers = JSON | {"content-encoding": encoding}
    for path in (IMAGES, "/api/v1/generate", "/v1/generate"):
        response = http.post(path, content=iter(parts), headers=headers)
        assert response.status_code == 200, response.text
    assert http.post(IMAGES, content=data, headers=headers).json()["data"][0]["seed"] == 7


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "gzip, gzip", "br, gzip", "x" * 500])
def test_other_content_encoding_is_415_by_name(http: httpx.Client, encoding: str) -> None:
    response = http.post(IMAGES, content=b"{}", headers=JSON | {"content-encoding": encoding})
    assert response.status_code == 415
    error = error_of(response)
    assert error["code"] == "unsupported_content_encoding"
    assert repr(encoding[:64]) in error["message"]
    assert response.headers["accept-encoding"] == "gzip"


COMPRESSED = gzip.compress(b'{"prompt": "a cat"}')
BROKEN = {
    "empty": b"",
    "not gzip": b'{"prompt": "a cat"}',
    "cut": COMPRESSED[:-1],
    "longer": COMPRESSED + b"x",
    "two members": COMPRESSED * 2,
    "wrong checksum": COMPRESSED[:-8] + bytes(8),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_gzip_is_400(http: httpx.Client, content: bytes) -> None:
    response = http.post(IMAGES, content=content, headers=JSON | {"content-encoding": "gzip"})
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_content_encoding"


def test_gzip_body_is_limited_before_and_after_decompression(http: httpx.Client) -> None:
    headers = JSON | {"content-encoding": "gzip"}
    exactly = json.dumps({"prompt": "a cat"}).encode().ljust(MAX_BODY)
    assert http.post(IMAGES, content=gzip.compress(exactly), headers=headers).status_code == 200
    bomb, stored = gzip.compress(bytes(200 * MAX_BODY)), gzip.compress(exactly, 0)
    assert len(bomb) < MAX_BODY < len(stored)
    for content in (gzip.compress(exactly + b" "), bomb, stored):
        response = http.post(IMAGES, content=content, headers=headers)
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"


def test_bomb_is_not_decompressed_beyond_the_limit() -> None:
    stream = decompression.Decompressor("gzip", 1000)
    with pytest.raises(ApiError, match="larger than 1000 bytes"):
        stream.feed(gzip.compress(bytes(10**7))[:990])
    assert len(stream._body) == 1001


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_413(chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * 8 * MAX_BODY}).encode()
    within = json.dumps({"prompt": "a cat"}).encode().ljust(MAX_BODY)
    with serving(FakeLoop(), manifest=MANIFEST.without_image_input()) as url, httpx.Client(base_url=url) as http:
        response = http.post(IMAGES, content=iter([body]) if chunked else body, headers=JSON)
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
        assert http.post(IMAGES, content=within, headers=JSON).status_code == 200


def test_body_that_arrives_too_slowly_is_408(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.1)
    head = b"POST /v1/generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    with connected(str(http.base_url)) as client:
        client.sendall(head)
        answer = client.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408 ")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["prompt", "model", "n", "size", "seed", "stream", "num_inference_steps", "guidance_scale"])
REQUESTS = st.dictionaries(KEYS | st.text(max_size=8), JSON_VALUES | st.text("0123456789x", max_size=9), max_size=6)
WITH_PROMPT = REQUESTS.map(lambda request: {"prompt": "a cat"} | request)
BODIES = st.binary(max_size=200) | (WITH_PROMPT | REQUESTS | JSON_VALUES).map(lambda value: json.dumps(value).encode())
CUT_BODIES = st.tuples(BODIES, st.integers(0, 200)).map(lambda cut: cut[0][: cut[1]])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES | CUT_BODIES)
def test_arbitrary_body_is_never_a_server_error(http: httpx.Client, body: bytes) -> None:
    response = http.post(IMAGES, content=body, headers=JSON)
    if response.status_code != 200:
        assert response.status_code in (400, 404, 504)
        error_of(response)
    elif "json" in response.headers["content-type"]:
        assert response.json()["data"]
    else:
        assert "image_generation.completed" in response.text
