"""Malformed HTTP messages: valid ones for every route, broken at one level, from bytes to ranges of values.

Knows requests; not the right answers.
"""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

ROUTES = (
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/generate"),
    ("POST", "/api/v1/generate"),
    ("POST", "/api/v1/generate_async"),
    ("GET", "/v1/tasks?limit=5&before=7"),
    ("GET", "/v1/task/job_0"),
    ("DELETE", "/v1/task/job_0"),
    ("GET", "/v1/task/job_0/events"),
    ("GET", "/v1/task/job_0/ws"),
    ("GET", "/v1/images/job_0/0.png"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/a/model"),
    ("GET", "/v1/model_info"),
    ("GET", "/health"),
    ("HEAD", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
)
COMMON = ("prompt", "negative_prompt", "num_inference_steps", "seed", "timeout")
OPENAI = (
    "model",
    "n",
    "size",
    "guidance_scale",
    "response_format",
    "output_format",
    "output_compression",
    "background",
)
SWITCHES = ("stream", "partial_images", "quality", "moderation", "style", "user")
TASKS = ("width", "height", "num_images", "cfg_scale", "previews")
HUGE = 10**4000
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 11, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**40, HUGE, -HUGE),
    *(0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", " ", "\x00", "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "a" * 40_000, "0", "-1", "1e9", "NaN", "null"),
    *("x", "64x", "x64", "9" * 30, "99999x99999", "１２８x６４", "../../etc/passwd", "%00", "' OR 1=1 --", "{{7*7}}"),
    *([], {}, [[]], [0], {"": {}}, [None] * 1000, {"prompt": "a cat"}, [[[[[[[[[[]]]]]]]]]]),
)
HEADERS = (
    *(b"content-type: ", b"content-type: text/plain", b"content-type: application/json; charset=utf-16"),
    *(b"content-type: application/json, text/plain", b"content-type: \xff\xfe", b"content-type: multipart/form-data"),
    *(b"content-encoding: gzip", b"content-encoding: br, gzip", b"transfer-encoding: gzip"),
    *(b"host: ", b"host: [", b"host: a b", b"host: \xff", b"host: a:99999999", b"host: a\x00b", b"host: @/?#"),
    *(b"authorization: Bearer \xff", b"authorization: Basic ===", b"authorization: " + b"A" * 9000),
    *(b"x-api-key: \x80\x81", b"x-request-id: a b\tc", b"x-request-id: " + b"x" * 9000, b"x-request-id: \xff"),
    *(b"idempotency-key: ", b"idempotency-key: \xc3\xa4\xff", b"idempotency-key: " + b"k" * 256),
    *(b"idempotency-key: '; DROP TABLE jobs", b"last-event-id: \xff\x00", b"last-event-id: " + b"9" * 400),
    *(b"expect: 100-continue", b"expect: 200-ok", b"upgrade: websocket", b"upgrade: h2c", b"connection: upgrade"),
    *(b"range: bytes=-1--2", b"if-modified-since: yesterday", b"accept: \x01", b"accept: " + b"*/*," * 2000),
    *(b"cookie: " + b"a=b; " * 4000, b" folded: yes", b"\tfolded", b"no colon", b": no name", b"na me: x"),
    *(b"a\x00: b", b"nul: a\x00b", b"\xff: \xff", b"x-forwarded-for: '", b"x-forwarded-proto: \xff", b"te: trailers"),
    *(b"content-length: -1", b"content-length: +5", b"content-length: 0x5", b"content-length: 5, 6"),
    *(b"content-length: ", b"content-length: 1e3", b"content-length: " + b"9" * 30, b"content-length: \xb2"),
    *(b"transfer-encoding: chunked", b"transfer-encoding: xchunked", b"transfer-encoding: chunked, chunked"),
)
TARGETS = (
    *(b"", b"*", b"/", b"//", b"///v1/models", b"v1/models", b"/../../etc/passwd", b"/v1/../v1/models", b"/v1/models/"),
    *(b"/%", b"/%zz", b"/%00", b"/%ff%fe", b"/%2e%2e%2f", b"/v1/models/%00", b"/v1/models/%ed%a0%80", b"/v1/task/"),
    *(b"/v1/task/%00", b"/v1/task/%ff", b"/v1/task/" + b"a" * 9000, b"/v1/task/%0d%0aset-cookie:x", b"/v1/task/a%2fb"),
    *(b"/v1/images/job_0/99.png", b"/v1/images/job_0/-1.png", b"/v1/images/job_0/%D9%A1.png", b"/v1/images//"),
    *(
        b"/v1/images/%00/0.png",
        b"/v1/images/job_0/0.png%0a",
        b"/v1/images/..%2f..%2f0/0.png",
        b"/" + b"a" * 70_000,
    ),
    *(
        b"/v1/tasks?limit=" + b"9" * 5000,
        b"/v1/tasks?before=-1",
        b"/v1/tasks?before=99999999999999999999",
        b"/v1/tasks?=",
    ),
    *(
        b"/v1/tasks?limit=%ff&before=%00",
        b"/v1/tasks?limit=1&limit=x",
        b"/v1/tasks?limit[]=1",
        b"/v1/tasks?" + b"&" * 9000,
    ),
    *(
        b"/v1/tasks?limit=\xd9\xa1",
        b"http://[/v1/models",
        b"http://a@b:c/d",
        b"/v1/models#x",
        b"/v1/models\x00",
        b"/a b",
    ),
    *(b"/v1/task/x/events?\xff", b"/v1/task/x/ws", b"/caf\xc3\xa9", b"/\xff\xfe", b"/v1/models;x=1", b"/v1%2fmodels"),
)
METHODS = (
    b"",
    b"get",
    b"G@T",
    b"GET/",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"PATCH",
    b"PUT",
    b"\xff",
    b"M" * 9000,
)
VERSIONS = (
    b"",
    b"HTTP/0.9",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/9.9",
    b"HTTP/1.1x",
    b"HTTP/x",
    b"http/1.1",
    b"HTTP/1.1 a",
)
SYNTAX = (
    *(b"", b" ", b"{", b"}", b"[", b'"', b"nul", b"{}", b"[]", b"0", b"-", b"1e", b'{"prompt"}', b'{"prompt": }'),
    *(b"{'prompt': 'a cat'}", b'{"prompt": "a cat",}', b'{"prompt": "a cat"} x', b'{prompt: "a cat"}', b'{"": 1}'),
    *(
        b'{"prompt": "a\ncat"}',
        b'{"prompt": "\\x"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf{}",
    ),
    *(b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": NaN}', b'{"prompt": "a cat", "n": Infinity}', b'{"n": -Infinity}'),
    *(b'{"prompt": "a cat", "n": 1, "n": "x"}', b"[" * 100_000, b'{"a":' * 50_000, b"\x00" * 1000, b"// no\n{}"),
    *(
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"n": 1e99999}',
        b'{"n": 01}',
        b'{"n": +1}',
        b'{"n": 0x1}',
        b" " * (1 << 20) + b"{}",
    ),
    *(
        gzip.compress(b'{"prompt": "a cat"}'),
        '{"prompt": "a cat"}'.encode("utf-16"),
        b'{"prompt": "' + b"a" * (1 << 20),
    ),
)
CHUNKS = (
    *(
        b"ZZ\r\n{}\r\n",
        b"-1\r\n{}\r\n",
        b"f" * 40 + b"\r\n",
        b"2\r\n{}",
        b"2;" + b"x" * 20_000 + b"\r\n{}\r\n0\r\n\r\n",
    ),
    *(
        b"2\n{}\n0\n\n",
        b"0\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"5\r\n{}\r\n0\r\n\r\n",
        b"\r\n\r\n",
        b"2\r\n{}\r\n0\r\n\r\nGET",
    ),
)
FRAMES = (
    *(
        b"\x81\x05hello",
        b"\x81\x85\x00\x00\x00\x00hello",
        b"\x8f\x80\x00\x00\x00\x00",
        b"\xff" * 100,
        b"\x88\x82\x00\x00\x00\x00\x00\x01",
    ),
    *(
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\x89\xfe\x01\x00" + b"\x00" * 260,
        b"GET / HTTP/1.1\r\n\r\n",
    ),
    *(b"\x81\x82\x00\x00\x00\x00\xff\xfe", b"\x00\x80\x00\x00\x00\x00", b"\xc1\x80\x00\x00\x00\x00", b""),
)
UPGRADE = (b"connection: Upgrade", b"upgrade: websocket")
HANDSHAKE = (b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==", b"sec-websocket-version: 13")
BAD_HANDSHAKE = (
    b"sec-websocket-key: x",
    b"sec-websocket-version: 99",
    b"sec-websocket-key: ",
    b"sec-websocket-extensions: \xff",
)


@dataclass(frozen=True)
class Message:
    """An HTTP request in parts. `tail` is sent after it on the same connection."""

    method: bytes
    target: bytes
    version: bytes = b"HTTP/1.1"
    headers: tuple[bytes, ...] = (b"host: a", b"connection: close")
    body: bytes = b""
    newline: bytes = b"\r\n"
    length: bool = True
    tail: bytes = b""
    fields: dict[str, Any] = field(default_factory=dict, hash=False)

    def encode(self) -> bytes:
        headers = list(self.headers)
        if self.length and self.body:
            headers.append(b"content-length: %d" % len(self.body))
        head = [b" ".join(part for part in (self.method, self.target, self.version)), *headers, b"", b""]
        return self.newline.join(head) + self.body + self.tail


Break = Callable[[random.Random, Message], Message]


def messages(seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` broken requests, the same for the same seed."""
    chance = random.Random(seed)
    breaks: tuple[Break, ...] = (_value, _value, _syntax, _header, _headers, _target, _line, _chunked, _websocket)
    for number in range(count):
        method, path = ROUTES[number % len(ROUTES)]
        message = chance.choice(breaks)(chance, _valid(method, path))
        data = message.encode()
        yield _flip(chance, data) if chance.random() < 0.1 else data


def _valid(method: str, path: str) -> Message:
    message = Message(method.encode(), path.encode())
    if method != "POST":
        return message
    fields = {"prompt": "a cat", "num_inference_steps": 1}
    headers = (*message.headers, b"content-type: application/json")
    return replace(message, headers=headers, body=json.dumps(fields).encode(), fields=fields)


def _value(chance: random.Random, message: Message) -> Message:
    if not message.fields:
        return _target(chance, message)
    names = (*COMMON, *((*OPENAI, *SWITCHES) if b"images" in message.target else TASKS), "unknown", "")
    wrong = {chance.choice(names): chance.choice(VALUES) for _ in range(chance.choice((1, 1, 3)))}
    if wrong.get("timeout") == 5e-324:  # short, but well-formed
        del wrong["timeout"]
    fields = message.fields | wrong
    return replace(message, body=_json(fields, ascii=chance.random() < 0.5))


def _json(fields: dict[str, Any], *, ascii: bool) -> bytes:
    texts = (f"{json.dumps(name)}: {_number(value, ascii=ascii)}" for name, value in fields.items())
    return ("{" + ", ".join(texts) + "}").encode("utf-8", "surrogatepass")


def _number(value: Any, *, ascii: bool) -> str:
    if value in (HUGE, -HUGE) and not isinstance(value, bool):
        return ("-" if value < 0 else "") + "1" + "0" * 4000
    return json.dumps(value, ensure_ascii=ascii)


def _syntax(chance: random.Random, message: Message) -> Message:
    if not message.body:
        return _target(chance, message)
    if chance.random() < 0.7:
        return replace(message, body=chance.choice(SYNTAX))
    return replace(message, body=message.body[: chance.randrange(len(message.body))])


def _header(chance: random.Random, message: Message) -> Message:
    added = tuple(chance.choice(HEADERS) for _ in range(chance.choice((1, 1, 2, 4))))
    headers = list(message.headers + added)
    if chance.random() < 0.3:
        del headers[chance.randrange(len(headers))]
    if chance.random() < 0.3:
        chance.shuffle(headers)
    return replace(message, headers=tuple(headers), length=chance.random() < 0.8)


def _headers(chance: random.Random, message: Message) -> Message:
    many = chance.choice((200, 2000, 2000))
    return replace(message, headers=message.headers + tuple(b"x-%d: y" % i for i in range(many)))


def _target(chance: random.Random, message: Message) -> Message:
    return replace(message, target=chance.choice(TARGETS))


def _line(chance: random.Random, message: Message) -> Message:
    match chance.randrange(5):
        case 0:
            return replace(message, method=chance.choice(METHODS))
        case 1:
            return replace(message, version=chance.choice(VERSIONS))
        case 2:
            return replace(message, newline=chance.choice((b"\n", b"\r", b"\r\r\n", b"\x0b", b"\x00")))
        case 3:
            return replace(message, length=False, headers=(*message.headers, b"content-length: 100000"))
        case _:
            return replace(message, tail=chance.choice((b"\x00" * 50, b"GET / HTTP/1.1", b"\r\n" * 50, b"x" * 70_000)))


def _chunked(chance: random.Random, message: Message) -> Message:
    headers = (*message.headers, b"transfer-encoding: chunked")
    if chance.random() < 0.3:
        headers = (*headers, b"content-length: 2")
    return replace(message, headers=headers, length=False, body=chance.choice(CHUNKS))


def _websocket(chance: random.Random, message: Message) -> Message:
    target = chance.choice((message.target, b"/v1/task/job_0/ws", b"/v1/task/%ff/ws", b"/v1/task/%00/ws"))
    handshake = tuple(part for part in UPGRADE + HANDSHAKE if chance.random() < 0.9)
    if chance.random() < 0.5:
        handshake = (*handshake, chance.choice(BAD_HANDSHAKE))
    method = chance.choice((b"GET", b"GET", b"GET", message.method))
    return Message(method, target, headers=(b"host: a", *handshake), tail=chance.choice(FRAMES))


def _flip(chance: random.Random, data: bytes) -> bytes:
    """Change, drop or double a byte, or drop the end."""
    place = chance.randrange(len(data))
    match chance.randrange(4):
        case 0:
            return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
        case 1:
            return data[:place] + data[place + 1 :]
        case 2:
            return data[:place] + data[place:] * 2
        case _:
            return data[:place]
