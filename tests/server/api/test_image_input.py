"""Images that requests bring along: on the endpoints with JSON, their limits, and servers that take none."""

import base64
import gzip
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fakes.forms import BOUNDARY, HEADERS, form, malformed, part
from fakes.loop import MANIFEST, FakeLoop
from fakes.pictures import RED, as_base64, left_half, picture
from fakes.raw_client import connected
from fakes.server import IMAGES, decoded, error_of, serving
from hypothesis import given
from hypothesis import strategies as st

from server.api import body
from server.api.base64_images import from_base64
from server.api.body import MAX_BODY
from server.api.errors import ApiError
from server.api.image_input import FORM_FILES

EDITS, GENERATE, TASKS = "/v1/images/edits", "/api/v1/generate", ("/v1/generate", "/api/v1/generate_async")
LIMIT = 1 << 20  # bytes of a file, on the server of these tests
TEXT = st.text(st.characters(exclude_characters='"', codec="utf-8"), max_size=9)
IGNORED = "x-ignored-parameters"


@pytest.fixture(scope="module")
def base_url(fake: FakeLoop) -> Iterator[str]:
    with serving(fake, max_upload=LIMIT) as url:
        yield url


def first_image(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """Return the pixels of the first image of a request to any of the endpoints."""
    answer = http.post(path, json={"prompt": "a cat", "seed": 7} | body)
    assert answer.status_code == 200, answer.text
    if path in TASKS:
        task = answer.json()["task_id"]
        until = time.monotonic() + 10
        while (found := http.get(f"/v1/task/{task}").json())["status"] in ("pending", "running"):
            assert time.monotonic() < until
            time.sleep(0.01)
        return decoded(http.get(found["result"]["paths"][0]).content)
    data = answer.json()["images"][0] if path == GENERATE else answer.json()["data"][0]["b64_json"]
    return decoded(base64.b64decode(data))


@pytest.mark.parametrize("path", [IMAGES, GENERATE, *TASKS])
def test_init_image_and_mask_as_base64(http: httpx.Client, path: str) -> None:
    image = {"init_image": as_base64(picture())}
    found = first_image(http, path, image | {"strength": 0.25})
    assert found.shape == (96, 64, 3) and found[0, 0].tolist() == [7, 2, RED]
    found = first_image(http, path, image | {"mask": f"data:image/png;base64,{as_base64(left_half())}", "prompt": ""})
    assert (found[:, :32] == [7, 8, RED]).all() and (found[:, 32:] == [RED, 20, 30]).all()
    found = first_image(http, path, image | {"width": 128, "height": 64, "resize_mode": "stretch"})
    assert found.shape == (64, 128, 3)


@pytest.mark.parametrize("path", [IMAGES, GENERATE, TASKS[0]])
@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"init_image": "http://127.0.0.1/cat.png"}, 400, "init_image", "url_not_fetched"),
        ({"init_image": "ftp://example.com/cat.png"}, 400, "init_image", "url_not_fetched"),
        ({"init_image": "data:image/png;base64"}, 400, "init_image", "invalid_data_url"),
        ({"init_image": "AAA"}, 400, "init_image", "invalid_data_url"),
        ({"init_image": "é"}, 400, "init_image", "invalid_data_url"),
        ({"init_image": ""}, 400, "init_image", "invalid_value"),
        ({"init_image": "AAAA"}, 400, "init_image", "invalid_value"),
        ({"init_image": as_base64(bytes(LIMIT + 3))}, 413, "init_image", "file_too_large"),
        ({"mask": as_base64(left_half())}, 400, "mask", "invalid_value"),
        ({"init_image": as_base64(picture()), "mask": "AAAA"}, 400, "mask", "invalid_value"),
        ({"init_image": as_base64(picture()), "strength": 2}, 400, "strength", "integer_above_max_value"),
        ({"init_image": as_base64(picture()), "strength": 0.0}, 400, "strength", "invalid_value"),
        ({"init_image": as_base64(picture()), "resize_mode": "fill"}, 400, "resize_mode", "invalid_value"),
        ({"init_image": as_base64(picture()), "size": "72x64"}, 400, "size", "invalid_value"),
        ({"init_image": as_base64(picture()), "padding_mask_crop": 4}, 400, "padding_mask_crop", "invalid_value"),
        ({"init_image": as_base64(picture()), "lora": "other"}, 400, "lora", "invalid_value"),
        ({"init_image": 5}, 400, "init_image", "invalid_type"),
        ({"prompt": " "}, 400, "prompt", "invalid_value"),
    ],
)
def test_wrong_init_image_is_refused_by_name(
    http: httpx.Client, path: str, change: dict[str, Any], status: int, param: str, code: str
) -> None:
    answer = http.post(path, json={"prompt": "a cat"} | change)
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code), error
    assert len(answer.content) < 1000


@pytest.mark.parametrize("path", [IMAGES, GENERATE, TASKS[0]])
def test_options_without_an_init_image_are_named_as_ignored(http: httpx.Client, path: str) -> None:
    options = {"strength": 0.5, "resize_mode": "crop", "padding_mask_crop": 8, "mask_blur": 3}
    answer = http.post(path, json={"prompt": "a cat"} | options)
    assert answer.headers[IGNORED] == "strength, resize_mode, padding_mask_crop, mask_blur"
    with_image = {"prompt": "a cat", "init_image": as_base64(picture()), "strength": 0.5, "mask_blur": 3}
    assert http.post(path, json=with_image).headers[IGNORED] == "mask_blur"
    cropped = with_image | {"mask": as_base64(left_half(transparent=False)), "padding_mask_crop": 8}
    assert http.post(path, json=cropped | {"resize_mode": "stretch"}).headers[IGNORED] == "resize_mode"


def test_explicit_size_crops_the_image_to_its_aspect_ratio(http: httpx.Client) -> None:
    found = first_image(http, IMAGES, {"init_image": as_base64(picture((200, 100))), "size": "64x128"})
    assert found.shape == (128, 64, 3)


def test_server_without_image_input_refuses_images_by_name_and_reads_none() -> None:
    with serving(FakeLoop(), manifest=MANIFEST.without_image_input()) as url, httpx.Client(base_url=url) as http:
        assert http.get("/v1/model_info").json()["image_input"] is False
        image = as_base64(picture())
        for path in (IMAGES, GENERATE, TASKS[0], EDITS):
            answer = http.post(path, json={"prompt": "a cat", "init_image": image})
            assert (answer.status_code, error_of(answer)["code"]) == (400, "image_input_unavailable")
        for path in (EDITS, "/v1/images/variations"):
            answer = http.post(path, content=form(("image", picture(), "x.png")), headers=HEADERS)
            assert (answer.status_code, error_of(answer)["code"]) == (400, "image_input_unavailable")
        large = json.dumps({"prompt": "a cat", "init_image": "A" * MAX_BODY})
        assert http.post(IMAGES, content=large, headers={"content-type": "application/json"}).status_code == 413


def test_model_info_says_that_images_are_taken(http: httpx.Client) -> None:
    assert http.get("/v1/model_info").json()["image_input"] is True


def test_largest_image_is_read_and_a_larger_one_is_not(http: httpx.Client) -> None:
    noise = bytes(LIMIT)  # no image, but as large as one may be
    for data, status in ((noise, 400), (noise + b"\0", 413)):
        answer = http.post(EDITS, content=form(("image", data, "x.png")), headers=HEADERS)
        assert (answer.status_code, error_of(answer)["param"]) == (status, "image")
        answer = http.post(EDITS, content=form(("image", picture(), "x"), ("mask", data, "x")), headers=HEADERS)
        assert (answer.status_code, error_of(answer)["param"]) == (status, "mask")


def test_form_and_json_over_their_limits_are_413_before_they_are_read(base_url: str) -> None:
    kinds = {"application/json": IMAGES, HEADERS["content-type"]: EDITS}
    for kind, path in kinds.items():
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\ncontent-length: {100 << 20}\r\n\r\n"
        with connected(base_url) as client:
            client.sendall(head.encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_form_of_unknown_length_is_refused_at_its_limit(http: httpx.Client) -> None:
    count = (FORM_FILES * LIMIT + MAX_BODY) // LIMIT
    for number, status in ((count - 1, 200), (count + 1, 413)):
        images = [part("image", picture(), "x.png"), *[part("image", bytes(LIMIT), "x.png")] * number]
        pieces = iter([*images, form()])
        assert http.post(EDITS, content=pieces, headers=HEADERS).status_code == status


def test_compressed_json_stays_small_and_compressed_forms_are_415(http: httpx.Client) -> None:
    """A large body would be decompressed for too long at once."""
    data = json.dumps({"prompt": "a cat", "init_image": "A" * (2 * MAX_BODY)}).encode()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = http.post(IMAGES, content=gzip.compress(data), headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
    body = gzip.compress(form(("image", picture(), "x.png")))
    answer = http.post(EDITS, content=body, headers=HEADERS | {"content-encoding": "gzip"})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x", ""])
def test_other_content_types_are_415(http: httpx.Client, kind: str) -> None:
    answer = http.post(EDITS, content=b"x", headers={"content-type": kind})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")


def test_form_that_arrives_too_slowly_is_408(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.2)
    head = (
        f"POST {EDITS} HTTP/1.1\r\nhost: a\r\ncontent-type: {HEADERS['content-type']}\r\ncontent-length: 9999\r\n\r\n"
    )
    with connected(base_url) as client:
        client.sendall(head.encode() + part("image", b"", "x.png")[:-2])
        for _ in range(3):
            time.sleep(0.05)
            client.sendall(b"\x89")  # slow, but not silent
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def raw(body: bytes) -> bytes:
    head = f"POST {EDITS} HTTP/1.1\r\nhost: a\r\ncontent-type: {HEADERS['content-type']}\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def test_hundreds_of_malformed_forms_are_refused_and_leave_the_server_well(http: httpx.Client) -> None:
    whole = form(("prompt", b"a cat", None), ("image", picture(), "in.png"), ("mask", left_half(), "m.png"))
    bodies = [data for _, data in malformed(whole)]
    bodies += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda each: http.post(EDITS, content=each, headers=HEADERS, timeout=60), bodies))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 400, 413} and statuses[400] > 100, statuses
    assert http.get("/health").status_code == 200


@given(st.lists(st.tuples(TEXT, st.binary(max_size=99), st.none() | TEXT), max_size=4))
def test_arbitrary_form_is_never_a_server_error(http: httpx.Client, parts: list[tuple[str, bytes, str | None]]) -> None:
    answer = http.post(EDITS, content=form(*parts), headers=HEADERS)
    assert answer.status_code == 400
    error_of(answer)


def test_client_that_leaves_in_the_middle_of_its_upload_frees_the_memory(base_url: str, http: httpx.Client) -> None:
    head = raw(b"").replace(b"content-length: 0", b"content-length: %d" % LIMIT)
    for _ in range(40):  # 40 MiB in all; 8 are held at most
        with connected(base_url) as client:
            client.sendall(head + part("image", b"", "x.png")[:-2] + bytes(LIMIT // 2))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
    answer = http.post(EDITS, content=form(("image", picture(), "x.png")), headers=HEADERS)
    assert answer.status_code == 200


def test_many_uploads_at_once_are_answered_or_asked_to_come_again(http: httpx.Client) -> None:
    body = form(("image", picture((300, 300)) + bytes(LIMIT // 2), "x.png"))
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: http.post(EDITS, content=body, headers=HEADERS, timeout=60), range(50)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 429} and 200 in codes
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
    assert http.post(EDITS, content=body, headers=HEADERS).status_code == 200


@given(st.binary(max_size=99), st.sampled_from(["", "data:;base64,", "data:image/png;base64,", "DATA:x/y;a=b;base64,"]))
def test_base64_and_data_urls_are_decoded(data: bytes, prefix: str) -> None:
    text = base64.encodebytes(data).decode()  # with lines, as in MIME
    assert from_base64(prefix + text, "image") == data
    assert from_base64(prefix + text.replace("\n", "\r\n"), "image") == data


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("https://a/b", "url_not_fetched"),
        (" http://a", "url_not_fetched"),
        ("s3://bucket/key", "url_not_fetched"),
        ("data:image/png;base64;AAAA", "invalid_data_url"),
        ("data:" + "x" * 999 + ";base64,AAAA", "invalid_data_url"),
        ("AAAA=AAA", "invalid_data_url"),
        ("AAAA AAAA", "invalid_data_url"),
        ("A" * 13, "invalid_data_url"),
        ("\ud800", "invalid_data_url"),
    ],
)
def test_what_is_no_base64_is_refused(text: str, code: str) -> None:
    with pytest.raises(ApiError) as refusal:
        from_base64(text, "image")
    assert (refusal.value.status, refusal.value.code) == (400, code)


def test_long_base64_is_decoded_in_pieces() -> None:
    data = bytes(range(256)) * 12_000
    assert from_base64(as_base64(data), "image") == data


def test_boundary_in_the_content_type_is_the_one_that_counts(http: httpx.Client) -> None:
    body = form(("image", picture(), "x.png"), boundary=b"other")
    answer = http.post(EDITS, content=body, headers={"content-type": "multipart/form-data; boundary=other"})
    assert answer.status_code == 200
    assert BOUNDARY not in body
    assert http.post(EDITS, content=body, headers=HEADERS).status_code == 400
