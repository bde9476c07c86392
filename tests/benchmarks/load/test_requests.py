"""One request of a user until it ends: answers, refusals, timeouts, and images that are not the right ones."""

import base64
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.utils import formatdate

import numpy as np
import pytest
from fakes.image_server import ImageServer, image_server, pattern, png

from benchmarks.load.client.cases import Case, make_cases
from benchmarks.load.client.connection import Connection
from benchmarks.load.client.endpoints import ENDPOINTS
from benchmarks.load.client.fingerprints import BOUND, Fingerprint, ImageCheck, WrongImage
from benchmarks.load.client.references import draw_references, model_info
from benchmarks.load.client.request import Request, Session
from benchmarks.workload.mix import Mix, RequestKind
from benchmarks.workload.records import Record

KIND = RequestKind(name="square", width=64, height=64)
CASE = make_cases(Mix((KIND,)), 1)[0]
BLACK = png(np.zeros((64, 64, 3)))
HEAD = b"IHDR" + (65535).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
BOMB = BLACK[:12] + HEAD + zlib.crc32(HEAD).to_bytes(4, "big") + BLACK[33:]  # 4 billion pixels


@pytest.fixture
def server() -> Iterator[tuple[ImageServer, Session]]:
    with image_server() as (found, url):
        yield found, Session(url, ENDPOINTS["images"], {}, patience=5.0, timeout=5.0)


def address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def answered_by(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Let a function answer the only connection to a server, and yield the server's address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            stream, _ = listener.accept()
            with stream, suppress(OSError):  # a client that has gone
                answer(stream)
                stream.shutdown(socket.SHUT_WR)
                while stream.recv(1 << 16):  # closing before the request is read would reset the connection
                    continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield address(listener)
        thread.join(timeout=5)
        assert not thread.is_alive(), "the client has not closed its connection"


@contextmanager
def served(*requests: int) -> Iterator[Session]:
    """Accept one connection after the other, and close each after so many requests."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        thread = threading.Thread(target=answer_on, args=(listener, *requests))
        thread.start()
        yield Session(address(listener), ENDPOINTS["images"], {}, patience=0.0, timeout=5.0)
        thread.join()


def run(session: Session, case: Case = CASE) -> Record:
    with Connection(session.url) as connection:
        return Request(session, case).run(connection)


def test_right_answer_is_ok_with_the_servers_times(server: tuple[ImageServer, Session]) -> None:
    record = run(server[1])
    assert (record.outcome, record.status, record.images) == ("ok", 200, 1)
    assert (record.queue, record.drawing) == (0.02, 0.03)
    assert record.first_byte is not None and 0 < record.first_byte <= record.latency


def test_429_that_is_honoured_is_no_failure_and_its_wait_counts(server: tuple[ImageServer, Session]) -> None:
    fake, session = server
    fake.refuse = lambda number: (429, {"retry-after": "1"}) if number == 1 else None
    record = run(session)
    assert record.outcome == "ok"
    assert [(each.retry_after, each.is_honoured) for each in record.throttles] == [(1.0, True)]
    assert record.latency >= 1.0
    keys = [headers["idempotency-key"] for headers, _ in fake.received]
    assert len(keys) == 2 and keys[0] == keys[1]


def test_429_without_patience_is_a_failure(server: tuple[ImageServer, Session]) -> None:
    fake, session = server
    fake.refuse = lambda _: (429, {"retry-after": "1"})
    record = run(replace(session, patience=0.0))
    assert (record.outcome, record.status, record.error) == ("throttled", 429, "429: busy")
    assert [each.is_honoured for each in record.throttles] == [False]
    assert len(fake.received) == 1


@pytest.mark.parametrize(("status", "outcome"), [(429, "throttled"), (503, "refused")])
def test_retry_after_beyond_the_patience_ends_the_request_at_once(
    server: tuple[ImageServer, Session], status: int, outcome: str
) -> None:
    fake, session = server
    fake.refuse = lambda _: (status, {"retry-after": "3600"})
    record = run(session)
    assert (record.outcome, len(fake.received)) == (outcome, 1)


@pytest.mark.parametrize(("wait", "seconds"), [("7", 7.0), (3600, 3600.0), (-3600, 0.0)])
def test_retry_after_is_read_as_seconds_and_as_a_date(
    server: tuple[ImageServer, Session], wait: str | int, seconds: float
) -> None:
    fake, session = server
    text = wait if isinstance(wait, str) else formatdate(time.time() + wait, usegmt=True)
    fake.refuse = lambda _: (503, {"retry-after": text})
    record = run(replace(session, patience=0.0))
    assert [each.retry_after for each in record.throttles] == [pytest.approx(seconds, abs=120)]


@pytest.mark.parametrize(
    "text", ["soon", ",", "-1", "1.5", "Tue, 99 Foo 99999 99:99:99 GMT", "0 0 0 0 0", "1 Jan 99999"]
)
def test_retry_after_that_is_neither_counts_as_none(server: tuple[ImageServer, Session], text: str) -> None:
    fake, session = server
    fake.refuse = lambda _: (503, {"retry-after": text})
    record = run(replace(session, patience=0.0))
    assert (record.outcome, record.throttles[0].retry_after) == ("refused", None)


def test_other_status_is_a_failure_with_the_servers_code(server: tuple[ImageServer, Session]) -> None:
    fake, session = server
    fake.refuse = lambda _: (500, {})
    record = run(session)
    assert (record.outcome, record.status, record.error) == ("failed", 500, "500: busy")


def test_answer_after_the_timeout_is_a_timeout(server: tuple[ImageServer, Session]) -> None:
    fake, session = server
    fake.stall(1, 1.0)
    record = run(replace(session, timeout=0.2))
    assert (record.outcome, record.error) == ("timeout", "no answer within 0.2 s")


HEADERS = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "then"),
    [(HEADERS, b" "), (HEADERS[:12], b" "), (HEADERS[:17], b"a: b\r\n")],
    ids=["body", "status", "headers"],
)
@pytest.mark.parametrize("endpoint", ["images", "stream"])
def test_trickle_of_an_answer_does_not_outlast_the_timeout(endpoint: str, begin: bytes, then: bytes) -> None:
    def trickle(stream: socket.socket) -> None:
        stream.sendall(begin)
        for number in range(250):  # 5 s, unless the client closes the connection
            stream.sendall(then[number % len(then) :][:1])
            time.sleep(0.02)

    with answered_by(trickle) as url:
        connection = Connection(url)
        session = Session(url, ENDPOINTS[endpoint], {}, patience=0.0, timeout=0.2)
        record = Request(session, CASE).run(connection)  # and it closes the connection, as the server sees
    assert record.outcome == "timeout"


def test_trickle_of_headers_does_not_hold_up_the_question_what_a_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(stream: socket.socket) -> None:
        for number in range(250):
            stream.sendall(HEADERS[:12] if not number else b" ")
            time.sleep(0.02)

    monkeypatch.setattr("benchmarks.load.client.references.ANSWER_SECONDS", 0.2)
    with (
        answered_by(trickle) as url,
        pytest.raises(RuntimeError, match=r"no server answers .*: (timed out|the deadline)"),
    ):
        model_info(url, {})


@pytest.mark.parametrize("endpoint", ["images", "stream"])
def test_answer_without_end_is_a_failure_before_it_fills_the_memory(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pour(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            stream.sendall(b"data" * 10_000)

    monkeypatch.setattr("benchmarks.load.client.connection.MAX_BODY", 3 << 20)
    with answered_by(pour) as url:
        record = run(Session(url, ENDPOINTS[endpoint], {}, patience=0.0, timeout=30.0))
    assert (record.outcome, record.error) == ("failed", "AnswerTooLarge: the answer has more than 3 MiB")


def test_stream_is_read_line_by_line_wherever_its_packets_end() -> None:
    first, second = (base64.b64encode(pattern(seed)) for seed in (1, 2))
    preview = b'data: {"type": "x.partial_image", "b64_json": "%s"}\n\n' % first
    image = b'data: {"type": "x.completed", "index": %d, "b64_json": "%s"}'
    body = preview + image % (1, second) + b"\n\n" + image % (0, first)  # the second is finished first

    def answer(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 97):
            stream.sendall(body[start : start + 97])

    with answered_by(answer) as url, Connection(url) as connection:
        found = ENDPOINTS["stream"](connection, CASE, {}, time.monotonic() + 5)
    assert found.images == (pattern(1), pattern(2))
    assert found.first_byte is not None and found.first_preview is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"task_id": "\xc3\xbc"}',  # no path
        b'{"task_id": "a\\r\\nhost: other"}',
        b'{"other": ' + b"[" * 100_000,
        b'{"task_id": 1e999}',
        b"\xff\xfe",
    ],
)
def test_answer_of_any_content_is_a_failure_of_its_request_alone(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    with answered_by(lambda stream: stream.sendall(head + body)) as url:
        record = run(Session(url, ENDPOINTS["tasks"], {}, patience=0.0, timeout=5.0))
    assert record.outcome == "failed" and record.error


def test_server_that_is_not_there_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = address(listener)
    record = run(Session(url, ENDPOINTS["images"], {}, patience=0.0, timeout=5.0))
    assert record.outcome == "failed" and record.error.startswith("ConnectionRefusedError")


def test_answer_that_is_no_json_is_a_failure(server: tuple[ImageServer, Session]) -> None:
    fake, session = server
    fake.refuse = lambda _: (200, {})
    record = run(session)
    assert record.outcome == "failed" and "missing required field `data`" in record.error


def answer_on(listener: socket.socket, *requests: int) -> None:
    """Accept one connection after the other; close each after so many requests."""
    body = b'{"error": {"code": "teapot"}}'
    for count in requests:
        stream, _ = listener.accept()
        with stream, stream.makefile("rb") as file:
            for _ in range(count):
                length = 0
                while (line := file.readline()).strip():  # until the end of the head, or of the connection
                    if line.lower().startswith(b"content-length"):
                        length = int(line.split(b":")[1])
                file.read(length)
                stream.sendall(b"HTTP/1.1 418 No\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def test_connection_is_kept_and_opened_again_after_the_server_has_closed_it() -> None:
    with served(2, 1) as session, Connection(session.url) as connection:
        found = [Request(session, CASE).run(connection).status for _ in range(3)]
    assert found == [418, 418, 418]


def test_connection_works_again_after_a_new_one_has_failed_too() -> None:
    with served(1, 0, 1) as session, Connection(session.url) as connection:
        found = [Request(session, CASE).run(connection).status for _ in range(3)]
    assert found == [418, 0, 418]


def test_request_that_a_server_drops_after_it_has_taken_it_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.client.connection.STALE_SECONDS", 0.0)  # any failure comes later
    with served(1, 1) as session, Connection(session.url) as connection:
        found = [Request(session, CASE).run(connection) for _ in range(3)]
    assert [record.status for record in found] == [418, 0, 418]
    assert found[1].outcome == "failed"


def test_retry_after_0_does_not_make_a_client_flood_the_server(server: tuple[ImageServer, Session]) -> None:
    fake, session = server
    fake.refuse = lambda _: (429, {"retry-after": "0"})
    assert run(replace(session, patience=0.35)).outcome == "throttled"
    assert len(fake.received) <= 5


def test_answer_that_ends_too_early_is_a_failure() -> None:
    early = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{}"
    with answered_by(lambda stream: stream.sendall(early)) as url:
        record = run(Session(url, ENDPOINTS["images"], {}, patience=0.0, timeout=5.0))
    assert record.outcome == "failed" and record.error.startswith("IncompleteRead")


def test_request_that_is_sent_late_counts_from_the_moment_it_was_due(server: tuple[ImageServer, Session]) -> None:
    session = replace(server[1], started=time.monotonic() - 3.0)
    with Connection(session.url) as connection:
        record = Request(session, CASE, due=0.5).run(connection)
    assert record.due == 0.5 and record.sent >= 3.0
    assert record.latency >= 2.5
    assert record.first_byte is not None and record.first_byte >= 2.5


def checked(server: tuple[ImageServer, Session], images: list[bytes]) -> Record:
    """Draw the reference, and then run a request that gets other images."""
    fake, session = server
    check = ImageCheck(draw_references(session, [CASE]))
    fake.draw = lambda _: images
    return run(replace(session, require_right=check.require_right))


def test_same_image_is_right_also_with_rounding(server: tuple[ImageServer, Session]) -> None:
    assert checked(server, [pattern(CASE.seed)]).outcome == "ok"
    assert checked(server, [pattern(CASE.seed, noise=1)]).outcome == "ok"


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([pattern(CASE.seed + 1)], "an image of something else than the request drawn alone"),
        ([BLACK], "the image is plain: one colour, (0, 0, 0)"),
        ([png(np.full((64, 64, 3), 200))], "the image is plain: one colour, (200, 200, 200)"),
        ([pattern(CASE.seed, "64x80")], "an image of 64x80 instead of 64x64"),
        ([pattern(CASE.seed)] * 2, "2 images instead of 1"),
        ([b"<html>"], "no image file: b'<html>'"),
        ([pattern(CASE.seed)[:200]], f"no image file: {pattern(CASE.seed)[:20]!r}"),
        ([BOMB], f"no image file: {BOMB[:20]!r}"),
    ],
)
def test_wrong_image_is_a_failure(server: tuple[ImageServer, Session], images: list[bytes], error: str) -> None:
    record = checked(server, images)
    assert (record.outcome, record.error) == ("wrong_image", error)


def test_bytes_that_were_right_once_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check = ImageCheck({CASE.id: [Fingerprint.of(pattern(CASE.seed))]})
    check.require_right(CASE, [pattern(CASE.seed, noise=1)])
    monkeypatch.setattr(Fingerprint, "of", None)
    check.require_right(CASE, [pattern(CASE.seed, noise=1)])
    check.require_right(CASE, [pattern(CASE.seed)])


def test_distance_is_the_mean_difference_of_thumbnails() -> None:
    near, far = (Fingerprint.of(pattern(1, noise=noise)) for noise in (int(BOUND), int(BOUND) + 1))
    assert Fingerprint.of(pattern(1)).distance(near) == BOUND < Fingerprint.of(pattern(1)).distance(far)


def test_reference_that_is_black_ends_the_load_before_it_begins(server: tuple[ImageServer, Session]) -> None:
    server[0].draw = lambda _: [BLACK]
    with pytest.raises(RuntimeError, match=r"does not draw square alone \(wrong_image\): the image is plain"):
        draw_references(server[1], [CASE])


def test_reference_of_another_size_ends_the_load_before_it_begins(server: tuple[ImageServer, Session]) -> None:
    server[0].draw = lambda _: [pattern(1, "128x64")]
    with pytest.raises(RuntimeError, match=r"1 images of \[\(128, 64\)\], asked for 1 of 64x64"):
        draw_references(server[1], [CASE])


def test_image_that_no_reference_has_raises() -> None:
    with pytest.raises(WrongImage):
        ImageCheck({CASE.id: [Fingerprint.of(pattern(5))]}).require_right(CASE, [pattern(6)])
