"""Visits of clients: ask and wait, submit and poll, follow events, or cancel. Each visit is one accounted request."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from benchmarks.fleet.accounting import Request
from benchmarks.fleet.client import FIRST_DELAY, GIVE_UP, Client, error_code

IMAGES, SUBMIT = "/v1/images/generations", "/v1/generate"
FINAL = ("done", "failed", "cancelled")
POLL_DELAY = 0.5  # seconds

Visit = Callable[[Client, Request], Awaitable[str]]


async def ask(client: Client, request: Request, **fields: Any) -> str:
    """Ask for images by OpenAI's API and wait for them; return the outcome."""
    body = {
        "prompt": request.image.prompt,
        "size": f"{request.image.width}x{request.image.height}",
        "seed": request.image.seed,
        "num_inference_steps": request.image.num_inference_steps,
        "n": request.count,
    }
    response = await client.send(request, "POST", IMAGES, body | fields)
    if response.status_code != 200:
        return error_code(response)
    client.accounts.learn(request, response.headers["x-job-id"])
    images = response.json()["data"]
    files = [await _get(client, request, image["url"]) if image.get("url") else _decode(image) for image in images]
    return _check(client, request, files)


async def ask_for_urls(client: Client, request: Request) -> str:
    """Ask for images, and fetch them from the URLs in the answer."""
    return await ask(client, request, response_format="url")


async def poll(client: Client, request: Request) -> str:
    """Submit a task, ask for its state until it has ended, and fetch its images."""
    return await submit(client, request) or await _until_end(client, request)


async def follow(client: Client, request: Request) -> str:
    """Submit a task and read its events; connect again, to the next replica, whenever they break off."""
    if refused := await submit(client, request, previews=2):
        return refused
    last, images = "", dict[int, bytes]()
    while True:
        try:
            async with client.stream(f"/v1/task/{request.job}/events", last) as response:
                async for line in response.aiter_lines():
                    if line.startswith("id: "):
                        last = line.removeprefix("id: ")
                    event: dict[str, Any] = json.loads(line[6:]) if line.startswith("data: ") else {"type": None}
                    if event["type"] == "image":
                        images[event["index"]] = base64.b64decode(event["image"])
                    if event["type"] == "end":
                        return await _at_end(client, request, event["task"], images)
        except httpx.HTTPError as error:
            client.accounts.statuses[type(error).__name__] += 1
        await asyncio.sleep(FIRST_DELAY)


async def cancel(client: Client, request: Request) -> str:
    """Submit a task and cancel it soon, at another replica; it may have ended before."""
    request.must_succeed = False
    if refused := await submit(client, request):
        return refused
    await asyncio.sleep(client.rng.uniform(0, 1))
    response = await client.send(request, "DELETE", f"/v1/task/{request.job}")
    while response.status_code == 200 and response.json()["status"] not in FINAL:
        await asyncio.sleep(POLL_DELAY)
        response = await client.send(request, "GET", f"/v1/task/{request.job}")
    return "cancelled"  # 404: it had ended, and the request deleted it


MIXED: Sequence[Visit] = (ask, ask, ask_for_urls, poll, follow, cancel)


async def visit(client: Client, request: Request, how: Visit) -> None:
    """Make a visit, and record its outcome: "no answer" if there is none in GIVE_UP seconds."""
    try:
        async with asyncio.timeout(GIVE_UP):
            outcome = await how(client, request)
    except TimeoutError:
        outcome = "no answer"
    client.accounts.end(request, outcome, time.monotonic())


async def submit(client: Client, request: Request, **fields: Any) -> str | None:
    """Submit a task. Return None if it was accepted, or the code of the error."""
    body = {
        "prompt": request.image.prompt,
        "width": request.image.width,
        "height": request.image.height,
        "seed": request.image.seed,
        "num_inference_steps": request.image.num_inference_steps,
        "num_images": request.count,
    }
    response = await client.send(request, "POST", SUBMIT, body | fields)
    if response.status_code != 200:
        return error_code(response)
    client.accounts.learn(request, response.json()["task_id"])
    return None


async def _until_end(client: Client, request: Request) -> str:
    while True:
        response = await client.send(request, "GET", f"/v1/task/{request.job}")
        if response.status_code != 200:
            client.accounts.break_promise("accepted task is unknown", f"{request.job}: {error_code(response)}")
            return error_code(response)
        if (task := response.json())["status"] in FINAL:
            return await _at_end(client, request, task, {})
        await asyncio.sleep(POLL_DELAY)


async def _at_end(client: Client, request: Request, task: dict[str, Any], images: dict[int, bytes]) -> str:
    """Return the outcome of a task that has ended; fetch and check its images, and those that came as events."""
    if task["status"] != "done":
        return str(task["error_code"] or task["status"])
    for index, data in images.items():
        client.accounts.check_image(request, index, data)
    if images and len(images) < request.count:
        client.accounts.break_promise("events lack images", f"{request.job}: {sorted(images)}")
    return _check(client, request, [await _get(client, request, url) for url in task["result"]["paths"]])


async def _get(client: Client, request: Request, url: str) -> bytes:
    """Fetch a stored image, from whichever replica is next: all of them have it."""
    response = await client.send(request, "GET", httpx.URL(url).raw_path.decode())
    if response.status_code != 200:
        client.accounts.break_promise("stored image is not there", f"{url}: {error_code(response)}")
    return response.content


def _check(client: Client, request: Request, files: Sequence[bytes]) -> str:
    if len(files) != request.count:
        client.accounts.break_promise("images are missing", f"{request.job}: {len(files)} of {request.count}")
    for index, data in enumerate(files):
        client.accounts.check_image(request, index, data)
    return "done"


def _decode(image: dict[str, Any]) -> bytes:
    return base64.b64decode(image["b64_json"])
