"""A client with an API key: requests, and checks of their answers that go into a `Accounts`."""

import asyncio
import base64
import json
import random
import time
from typing import Any, Self

import httpx

from benchmarks.faults.accounting import Accounts
from benchmarks.faults.cases import Case
from engine.request import ImageKind

IMAGES, GENERATE, TASKS = "/v1/images/generations", "/api/v1/generate", ("/api/v1/generate_async", "/v1/generate")
TIMEOUT = 60.0  # seconds for an answer
JSON = {"content-type": "application/json"}
REFUSED = (429, 503)  # full queue, too little memory, no worker: a client may try again
FINAL = ("done", "failed", "cancelled")


class Client:
    """One client.

    Attributes:
        cases: what it asks for.
        rng: its decisions.
    """

    def __init__(self, url: str, key: str, cases: list[Case], accounts: Accounts, seed: int) -> None:
        self.url, self.key, self.cases, self.accounts, self.rng = url, key, cases, accounts, random.Random(seed)
        self.http = httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    def case(self) -> Case:
        """Return a random case."""
        return self.rng.choice(self.cases)

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """Post JSON without escapes, so that 32,000 emoji are 128 KB."""
        content = json.dumps(body, ensure_ascii=False).encode()
        return self.read(await self.http.post(path, content=content, headers=JSON | headers), path)

    def read(self, response: httpx.Response, action: str) -> httpx.Response:
        """Count an answer; one that no request can excuse is a broken promise."""
        self.accounts.outcomes[f"{action}: {response.status_code}"] += 1
        if response.status_code >= 400:
            code = _code(response)
            self.accounts.codes[code] += 1
            if response.status_code >= 500 and code in ("internal_error", "?"):
                self.accounts.break_promise("internal error", f"{action}: {response.status_code} {response.text[:200]}")
        if response.status_code == 429 and "retry-after" not in response.headers:
            self.accounts.break_promise("429 without Retry-After", action)
        return response

    async def images(self, case: Case, **fields: Any) -> httpx.Response:
        """Request images by OpenAI's API and check them; `fields` are further fields of the body."""
        response = await self.post(IMAGES, case.openai(**fields))
        if response.status_code == 200:
            job, kind = response.headers["x-job-id"], fields.get("output_format", "png")
            self.accounts.accept(job, case)
            self.accounts.end(job, "done")
            for index, image in enumerate(response.json()["data"]):
                await self._check(job, index, image, kind)
        return response

    async def generate(self, case: Case, images: int) -> None:
        """Request images by the API of existing deployments and check them."""
        response = await self.post(GENERATE, case.task(num_images=images))
        if response.status_code == 200:
            job = response.headers["x-job-id"]
            self.accounts.accept(job, case)
            self.accounts.end(job, "done")
            for index, data in enumerate(response.json()["images"]):
                self.accounts.check_image(job, index, base64.b64decode(data))

    async def submit(self, case: Case, **fields: Any) -> str | None:
        """Submit a task; return its id, or None if it was refused."""
        key = {"idempotency-key": fields.pop("idempotency_key")} if "idempotency_key" in fields else {}
        response = await self.post(self.rng.choice(TASKS), case.task(**fields), **key)
        if response.status_code != 200:
            return None
        job: str = response.json()["task_id"]
        self.accounts.accept(job, case)
        return job

    async def task(self, job: str) -> dict[str, Any] | None:
        """Return the state of a task; None if it is not there."""
        response = self.read(await self.http.get(f"/v1/task/{job}"), "task")
        if response.status_code != 200:
            if response.status_code == 404 and job not in self.accounts.deleted:
                self.accounts.break_promise("accepted task is unknown", job)
            return None
        state: dict[str, Any] = response.json()
        self.note_end(job, state)
        return state

    async def delete(self, job: str) -> None:
        """Cancel or delete a task."""
        self.accounts.deleted.add(job)
        self.read(await self.http.delete(f"/v1/task/{job}"), "delete")

    def note_end(self, job: str, task: dict[str, Any]) -> None:
        """Record the end of a task if it has ended."""
        if task["status"] in FINAL:
            self.accounts.end(job, task["status"])
            if task["status"] == "failed":
                self.accounts.codes[task["error_code"]] += 1

    async def fetch(self, job: str, task: dict[str, Any]) -> None:
        """Fetch and check the images of a finished task."""
        for index, url in enumerate(task["result"]["paths"]):
            response = self.read(await self.http.get(url), "image")
            if response.status_code == 200:
                self.accounts.check_image(job, index, response.content)

    async def _check(self, job: str, index: int, image: dict[str, Any], kind: ImageKind) -> None:
        if image.get("url"):
            response = self.read(await self.http.get(image["url"]), "image")
            if response.status_code == 200:
                self.accounts.check_image(job, index, response.content, kind)
        else:
            self.accounts.check_image(job, index, base64.b64decode(image["b64_json"]), kind)


async def ask_again_and_again(client: Client, case: Case, until: float) -> None:
    """Request one image after the other and time each: the innocent client."""
    while time.monotonic() < until:
        started = time.monotonic()
        try:
            response = await client.images(case)
        except httpx.HTTPError as error:
            client.accounts.lose("innocent", started, error)
            if isinstance(error, httpx.TimeoutException):
                client.accounts.innocent.append((started, time.monotonic()))  # it would have taken longer
            await asyncio.sleep(0.5)
            continue
        if response.status_code == 200:
            client.accounts.innocent.append((started, time.monotonic()))


def _code(response: httpx.Response) -> str:
    try:
        code: str = response.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return "?"
    return code
