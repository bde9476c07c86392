"""Actions of clients, good and bad. Each is one visit: requests, and often a hang-up in the middle."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import websockets
from websockets.asyncio.client import connect

from benchmarks.faults.cases import FLOOD, MAX_IMAGES, Case
from benchmarks.faults.client import FINAL, IMAGES, JSON, TASKS, Client

Action = Callable[[Client], Awaitable[None]]
LOST = (httpx.HTTPError, OSError, websockets.WebSocketException, asyncio.IncompleteReadError)
MAX_SECONDS = 90.0  # of an action; longer than TIMEOUT

MALFORMED: tuple[tuple[str, bytes], ...] = (
    (IMAGES, b""),
    (IMAGES, b"{"),
    (IMAGES, b"[" * 20_000),
    (IMAGES, b'{"prompt": "a", "n": 1e400}'),
    (IMAGES, b'{"prompt": "a", "size": "1x1"}'),
    (IMAGES, b'{"prompt": "\\ud800"}'),
    (IMAGES, b'{"prompt": "a", "lora": "../../etc/passwd"}'),
    (IMAGES, b'{"prompt": "' + b"a" * (2 << 20) + b'"}'),
    (TASKS[0], b"\xff\xfe\x00"),
    (TASKS[1], b'{"prompt": "a", "width": -64}'),
)


async def plain(client: Client) -> None:
    await client.images(client.case(), n=client.rng.randint(1, MAX_IMAGES))


async def lossy(client: Client) -> None:
    kind = client.rng.choice(("jpeg", "webp"))
    await client.images(client.case(), output_format=kind, response_format=client.rng.choice(("b64_json", "url")))


async def short_timeout(client: Client) -> None:
    await client.images(client.case(), timeout=client.rng.choice((0.01, 1.0, 10.0)))


async def other_api(client: Client) -> None:
    await client.generate(client.case(), client.rng.randint(1, MAX_IMAGES))


async def stream(client: Client) -> None:
    """Read a stream with previews; half of the clients leave in the middle."""
    body = client.case().openai(stream=True, partial_images=2, n=2)
    leaves_after = client.rng.choice((None, client.rng.uniform(0, 3)))
    with suppress(TimeoutError):
        async with asyncio.timeout(leaves_after), client.http.stream("POST", IMAGES, json=body) as response:
            client.accounts.outcomes[f"stream: {response.status_code}"] += 1
            async for _ in response.aiter_bytes():
                pass


async def hang_up(client: Client) -> None:
    """Request images, often with guidance and a long prompt, and leave before they are there."""
    case = client.rng.choice((client.case(), FLOOD))
    with suppress(TimeoutError):
        async with asyncio.timeout(client.rng.uniform(0, 2)):
            await client.post(IMAGES, case.openai(n=4))


async def poll(client: Client) -> None:
    """Submit a task, ask for it until it has ended, fetch its images, and sometimes delete it."""
    job = await client.submit(client.case(), num_images=client.rng.randint(1, MAX_IMAGES))
    while job is not None:
        task = await client.task(job)
        if task is None:
            return
        if task["status"] in FINAL:
            if task["status"] == "done":
                await client.fetch(job, task)
            if client.rng.random() < 0.3:
                await client.delete(job)
            return
        if client.rng.random() < 0.02:
            await client.delete(job)
            return
        await asyncio.sleep(client.rng.uniform(0.2, 1.5))


async def follow_by_events(client: Client) -> None:
    job = await client.submit(client.case(), previews=3)
    if job is None:
        return
    async with client.http.stream("GET", f"/v1/task/{job}/events") as response:
        client.accounts.outcomes[f"events: {response.status_code}"] += 1
        async for line in response.aiter_lines():
            if line.startswith("data: ") and _take_event(client, job, line.removeprefix("data: ")):
                return


async def follow_by_socket(client: Client) -> None:
    job = await client.submit(client.case(), previews=3)
    if job is None:
        return
    async with connect(f"{_socket_url(client)}/v1/task/{job}/ws", max_size=None) as socket:
        client.accounts.outcomes["socket: open"] += 1
        async for message in socket:
            if _take_event(client, job, str(message)):
                return
            if client.rng.random() < 0.05:
                return


async def follow_without_reading(client: Client) -> None:
    """Open event streams and sockets of one task, read nothing, and leave."""
    job = await client.submit(client.case(), num_images=MAX_IMAGES, previews=10)
    if job is None:
        return
    host = httpx.URL(client.url)
    writers = []
    for _ in range(5):
        _, writer = await asyncio.open_connection(host.host, host.port, limit=1024)
        writers.append(writer)
        writer.write(f"GET /v1/task/{job}/events HTTP/1.1\r\nhost: {host.netloc.decode()}\r\n\r\n".encode())
    await asyncio.sleep(client.rng.uniform(1, 15))
    for writer in writers:
        writer.transport.abort()


async def repeat_key(client: Client) -> None:
    """Send one request twice at once with one key: one job."""
    case, key = client.case(), uuid.UUID(int=client.rng.getrandbits(128)).hex
    jobs = await asyncio.gather(*(client.submit(case, idempotency_key=key, num_images=2) for _ in range(2)))
    found = {job for job in jobs if job is not None}
    if len(found) > 1:
        client.accounts.break_promise("two jobs for one key", str(found))


async def history(client: Client) -> None:
    before: dict[str, int] = {}
    for _ in range(client.rng.randint(1, 4)):
        response = client.read(await client.http.get("/v1/tasks", params={"limit": 200} | before), "history")
        tasks = response.json()["tasks"] if response.status_code == 200 else []
        if not tasks:
            return
        before = {"before": tasks[-1]["sequence"]}


async def page(client: Client) -> None:
    """Open the page, and one of its scripts."""
    for path in ("/", "/page/main.js"):
        client.read(await client.http.get(path), "page")


async def probe(client: Client) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/model_info", "/v1/task/none"):
        client.accounts.outcomes[f"{path}: {(await client.http.get(path)).status_code}"] += 1


async def malformed(client: Client) -> None:
    path, content = client.rng.choice(MALFORMED)
    response = client.read(await client.http.post(path, content=content, headers=JSON), "malformed")
    if not (400 <= response.status_code < 500 or response.status_code == 503):
        client.accounts.break_promise("malformed request", f"{content[:50]!r}: {response.status_code}")


async def without_key(client: Client) -> None:
    response = await client.http.post(IMAGES, json=client.case().openai(), headers={"authorization": "Bearer no"})
    if client.read(response, "without key").status_code not in (401, 503):
        client.accounts.break_promise("request without a key", str(response.status_code))


ACTIONS: tuple[Action, ...] = (
    plain, plain, lossy, short_timeout, other_api, stream, hang_up, hang_up, poll, poll, follow_by_events,
    follow_by_socket, follow_without_reading, repeat_key, history, page, probe, malformed, without_key,
)  # fmt: skip


async def act(client: Client, actions: tuple[Action, ...], until: float) -> None:
    """Do one random action after the other; one that takes longer than MAX_SECONDS counts as not answered."""
    while time.monotonic() < until:
        action, started = client.rng.choice(actions), time.monotonic()
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await action(client)
        except LOST as error:
            client.accounts.lose(action.__name__, started, error)
            await asyncio.sleep(0.5)


async def flood(client: Client, case: Case, count: int, until: float) -> None:
    """Keep up to `count` tasks of one client unfinished."""
    jobs: list[str] = []
    while time.monotonic() < until:
        started = time.monotonic()
        try:
            if len(jobs) < count and (job := await client.submit(case, num_images=MAX_IMAGES)) is not None:
                jobs.append(job)
                continue
            task = await client.task(jobs[0]) if jobs else None
            if task is None or task["status"] in FINAL:
                del jobs[:1]
        except LOST as error:
            client.accounts.lose("flood", started, error)
        await asyncio.sleep(1.0)


def _take_event(client: Client, job: str, text: str) -> bool:
    """Check an event of a task. True: it was the last."""
    event = json.loads(text)
    match event["type"]:
        case "image":
            client.accounts.check_image(job, event["index"], base64.b64decode(event["image"]))
        case "end":
            client.note_end(job, event["task"])
    return bool(event["type"] == "end")


def _socket_url(client: Client) -> str:
    return client.url.replace("http", "ws", 1)
