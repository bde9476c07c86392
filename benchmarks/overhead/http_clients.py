"""HTTP clients in a process of their own that use little CPU time: open connections, and a minimal response parser.

python -m benchmarks.overhead.http_clients
"""

import asyncio
import json
import random
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness.subprocess_client import Answer, serve
from benchmarks.overhead.traffic import Case, cases

PATH = "/v1/images/generations"
IMAGE = b'"b64_json":"'
ACCEPT_SECONDS = 0.01  # time for the server to accept a connection before a request is timed
ENGINE_STAGES = ("tokenize", "prompt_encoder", "vae_encoder", "denoiser", "vae_decoder")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of the server."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def image(self) -> str:
        """Return the image in base64."""
        start = self.body.index(IMAGE) + len(IMAGE)
        return self.body[start : self.body.index(b'"', start)].decode()

    def engine_seconds(self) -> float:
        """Return the engine's seconds for the image, as the server reports them in Server-Timing."""
        stages = dict(entry.split(";dur=") for entry in self.headers["server-timing"].split(", "))
        return sum(float(stages[stage]) for stage in ENGINE_STAGES) / 1e3


class Connection:
    """A keep-alive connection."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = host, reader, writer

    async def post(self, body: bytes, headers: str = "") -> Response:
        """Post a body to PATH; `headers` are extra header lines, each with its line end."""
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{headers}\r\n"
        )
        self._writer.write(head.encode() + body)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        found = dict(line.lower().split(": ", 1) for line in lines)
        content = await self._reader.readexactly(int(found["content-length"]))
        return Response(int(status.split()[1]), found, content)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """Open a connection to the server for the length of a block."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Connection(address.netloc, reader, writer)
    finally:
        writer.close()


async def generate(url: str, prompt: str, size: int, seed: int) -> Answer:
    """Request one image; return the seconds until its last byte, and the engine's share of them."""
    async with connect(url) as connection:
        await asyncio.sleep(ACCEPT_SECONDS)
        body = json.dumps(Case(prompt, size, seed).body()).encode()
        started = time.perf_counter()
        response = await connection.post(body)
        seconds = time.perf_counter() - started
        _require_image(response)
        return {"seconds": seconds, "engine_s": response.engine_seconds()}


async def fill(url: str, size: int, clients: int, warm: float, seconds: float) -> Answer:
    """Run `clients` that send their next request as soon as the last is answered; return the times of the answers.

    Args:
        warm: seconds of warm-up, whose answers are left out.
        seconds: seconds after the warm-up.
    """
    ended: list[float] = []
    upcoming = cases(size)

    async def run_client() -> None:
        async with connect(url) as connection:
            while True:
                _require_image(await connection.post(json.dumps(next(upcoming).body()).encode()))
                ended.append(time.perf_counter())

    start = time.perf_counter() + warm
    tasks = [asyncio.create_task(run_client()) for _ in range(clients)]
    failed, _ = await asyncio.wait(tasks, timeout=warm + seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in failed:
        task.result()  # raises the client's exception
    return {"ended": [at for at in ended if at >= start], "images": len(ended)}


@dataclass(slots=True)
class SoakLog:
    """Answers and errors of a soak test.

    Attributes:
        url: address of the server.
        end: time.perf_counter() after which no user sends another request.
        think: mean pause of a user between requests, seconds.
        run: prefix of every request's id.
        images: base64 of each distinct image -> its number. Nearly all answers to a case are equal bytes.
    """

    url: str
    end: float
    think: float
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    answers: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)


async def soak(url: str, users: Sequence[Sequence[Mapping[str, Any]]], seconds: float, think: float) -> Answer:
    """Run users that each request one of their cases, wait for the answer, pause, and start over.

    Args:
        users: cases of each user. Every other user sends an Idempotency-Key.
        think: mean pause in seconds, exponentially distributed.
    """
    log = SoakLog(url, time.perf_counter() + seconds, think)
    await asyncio.gather(*(_run_user(log, number, bodies) for number, bodies in enumerate(users)))
    return {"answers": log.answers, "errors": log.errors, "images": list(log.images)}


async def repeat(url: str, requests: Sequence[Mapping[str, Any]]) -> Answer:
    """Send requests again with the same idempotency keys; return the ids of the jobs that answered."""
    async with connect(url) as connection:
        responses = [await connection.post(json.dumps(each["body"]).encode(), _key(each["id"])) for each in requests]
    return {"jobs": [response.headers.get("x-job-id") for response in responses]}


async def _run_user(log: SoakLog, number: int, bodies: Sequence[Mapping[str, Any]]) -> None:
    rng = random.Random(number)
    async with connect(log.url) as connection:
        for count in range(sys.maxsize):
            if log.think:
                await asyncio.sleep(rng.expovariate(1 / log.think))
            if (started := time.perf_counter()) >= log.end:
                return
            body, request_id = rng.choice(bodies), f"{log.run}-{number}-{count}"
            key = _key(request_id) if number % 2 else ""
            try:
                response = await connection.post(json.dumps(body).encode(), f"x-request-id: {request_id}\r\n{key}")
            except (OSError, asyncio.IncompleteReadError) as error:
                log.errors.append(f"{request_id} was lost: {error!r}")
                return
            if response.status != 200 or response.headers["x-request-id"] != request_id:
                log.errors.append(f"{request_id}: {response.status} {response.headers} {response.body[:200]!r}")
                continue
            log.answers.append(
                {
                    "id": request_id,
                    "body": body,
                    "is_keyed": bool(key),
                    "seconds": time.perf_counter() - started,
                    "job": response.headers["x-job-id"],
                    "image": log.images.setdefault(response.image(), len(log.images)),
                }
            )


def _key(request_id: str) -> str:
    return f"idempotency-key: {request_id}\r\n"


def _require_image(response: Response) -> None:
    if response.status != 200:
        raise RuntimeError(f"the server answered {response.status}: {response.body[:400]!r}")


def main() -> None:
    functions: dict[str, Callable[..., Coroutine[None, None, Answer]]] = {
        "generate": generate,
        "fill": fill,
        "soak": soak,
        "repeat": repeat,
    }
    with asyncio.Runner() as runner:

        def synchronous(name: str) -> Callable[..., Answer]:
            return lambda **arguments: runner.run(functions[name](**arguments))

        serve({name: synchronous(name) for name in functions})


if __name__ == "__main__":
    main()
