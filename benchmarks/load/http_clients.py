"""Clients of a server, in a process of their own, as cheap as can be: open connections, and no parsing but of lengths.

python -m benchmarks.load.http_clients
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
from benchmarks.load.traffic import Case, cases

PATH = "/v1/images/generations"
IMAGE = b'"b64_json":"'
TAKEN = 0.01  # seconds after which a server has taken a connection; later requests over it find it open too
ENGINE_STAGES = ("tokenize", "prompt_encoder", "denoiser", "vae_decoder", "pixels")


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def image(self) -> str:
        """The image, in base64."""
        start = self.body.index(IMAGE) + len(IMAGE)
        return self.body[start : self.body.index(b'"', start)].decode()

    def engine_seconds(self) -> float:
        """What the engine took for the one image, by the server's own watch."""
        stages = dict(entry.split(";dur=") for entry in self.headers["server-timing"].split(", "))
        return sum(float(stages[stage]) for stage in ENGINE_STAGES) / 1e3


class Connection:
    """One connection, kept open."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = host, reader, writer

    async def post(self, body: bytes, headers: str = "") -> Response:
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
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Connection(address.netloc, reader, writer)
    finally:
        writer.close()


async def generate(url: str, prompt: str, size: int, seed: int) -> Answer:
    """One image: seconds from the request to the last byte of its answer, and how many of them the engine took."""
    async with connect(url) as connection:
        await asyncio.sleep(TAKEN)
        body = json.dumps(Case(prompt, size, seed).body()).encode()
        started = time.perf_counter()
        response = await connection.post(body)
        seconds = time.perf_counter() - started
        _require_image(response)
        return {"seconds": seconds, "engine_s": response.engine_seconds()}


async def fill(url: str, size: int, clients: int, warm: float, seconds: float) -> Answer:
    """`clients` that ask again as soon as they are answered: when each answer came, from `warm` seconds on."""
    ended: list[float] = []
    wanted = cases(size)

    async def ask() -> None:
        async with connect(url) as connection:
            while True:
                _require_image(await connection.post(json.dumps(next(wanted).body()).encode()))
                ended.append(time.perf_counter())

    start = time.perf_counter() + warm
    asking = [asyncio.create_task(ask()) for _ in range(clients)]
    over, _ = await asyncio.wait(asking, timeout=warm + seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    for task in over:
        task.result()  # raises
    return {"ended": [at for at in ended if at >= start], "images": len(ended)}


@dataclass(slots=True)
class Soak:
    """What users do until `end` and see. Images are kept once each: nearly all answers to a case are equal bytes."""

    url: str
    end: float
    think: float
    run: str = field(default_factory=lambda: uuid.uuid4().hex)  # begins the marker of every request
    answers: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)  # base64 -> its number


async def soak(url: str, users: Sequence[Sequence[Mapping[str, Any]]], seconds: float, think: float) -> Answer:
    """Users that each ask for one of their own cases, wait for the answer, think, and ask again.

    Args:
        users: the cases of each. Every other user sends an Idempotency-Key.
        think: mean seconds, exponentially distributed.
    """
    seen = Soak(url, time.perf_counter() + seconds, think)
    await asyncio.gather(*(_use(seen, number, own) for number, own in enumerate(users)))
    return {"answers": seen.answers, "errors": seen.errors, "images": list(seen.images)}


async def again(url: str, requests: Sequence[Mapping[str, Any]]) -> Answer:
    """The same requests with the same keys once more: the jobs that answered."""
    async with connect(url) as connection:
        answered = [await connection.post(json.dumps(each["body"]).encode(), _key(each["marker"])) for each in requests]
    return {"jobs": [response.headers.get("x-job-id") for response in answered]}


async def _use(seen: Soak, number: int, own: Sequence[Mapping[str, Any]]) -> None:
    chance = random.Random(number)
    async with connect(seen.url) as connection:
        for turn in range(sys.maxsize):
            if seen.think:
                await asyncio.sleep(chance.expovariate(1 / seen.think))
            if (started := time.perf_counter()) >= seen.end:
                return
            case, marker = chance.choice(own), f"{seen.run}-{number}-{turn}"
            keyed = _key(marker) if number % 2 else ""
            try:
                response = await connection.post(json.dumps(case).encode(), f"x-request-id: {marker}\r\n{keyed}")
            except (OSError, asyncio.IncompleteReadError) as error:
                seen.errors.append(f"{marker} was lost: {error!r}")
                return
            if response.status != 200 or response.headers["x-request-id"] != marker:
                seen.errors.append(f"{marker}: {response.status} {response.headers} {response.body[:200]!r}")
                continue
            seen.answers.append(
                {
                    "marker": marker,
                    "body": case,
                    "is_keyed": bool(keyed),
                    "seconds": time.perf_counter() - started,
                    "job": response.headers["x-job-id"],
                    "image": seen.images.setdefault(response.image(), len(seen.images)),
                }
            )


def _key(marker: str) -> str:
    return f"idempotency-key: {marker}\r\n"


def _require_image(response: Response) -> None:
    if response.status != 200:
        raise RuntimeError(f"the server answered {response.status}: {response.body[:400]!r}")


def main() -> None:
    functions: dict[str, Callable[..., Coroutine[None, None, Answer]]] = {
        "generate": generate,
        "fill": fill,
        "soak": soak,
        "again": again,
    }
    with asyncio.Runner() as runner:

        def run(what: str) -> Callable[..., Answer]:
            return lambda **arguments: runner.run(functions[what](**arguments))

        serve({what: run(what) for what in functions})


if __name__ == "__main__":
    main()
