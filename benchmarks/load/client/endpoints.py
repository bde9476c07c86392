"""Endpoints of image servers: requests for a case, and the images in their answers. Knows neither users nor retries.

OpenAI's endpoints are those of SGLang and vLLM-Omni too. A body has a field of zimage-serve alone only if its kind asks
for it (LoRA, priority, deadline).
"""

import json
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from benchmarks.load.client.cases import Case, init_image
from benchmarks.load.client.connection import Connection, Reply

JSON = {"content-type": "application/json"}
POLL = 0.25  # seconds between two questions about a task
PREVIEWS = 2  # partial images of a stream
BOUNDARY = "zimage-load-7e4f1c"
MAX_ERROR = 200  # characters


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one attempt. Times are time.monotonic().

    Attributes:
        status: 200 with images; otherwise `error` tells more.
        queue, drawing: seconds, as the server states them; None if it does not.
        retry_after: seconds that the server asks to wait; None if it does not.
    """

    status: int
    images: tuple[bytes, ...] = ()
    first_byte: float | None = None
    first_preview: float | None = None
    queue: float | None = None
    drawing: float | None = None
    retry_after: float | None = None
    error: str = ""


Endpoint = Callable[[Connection, Case, Mapping[str, str], float], Answer]


class _Image(msgspec.Struct):
    b64_json: bytes


class _Images(msgspec.Struct):
    """Answer of OpenAI's endpoints; SGLang's has the time of inference."""

    data: list[_Image]
    inference_time_s: float | None = None


class _TaskImages(msgspec.Struct):
    images: list[bytes]


class _Submitted(msgspec.Struct):
    task_id: str


class _Metadata(msgspec.Struct):
    seconds: dict[str, float]


class _TaskResult(msgspec.Struct):
    paths: list[str]
    metadata: list[_Metadata] = []


class _Task(msgspec.Struct):
    status: str
    result: _TaskResult | None = None
    error: str | None = None


class _Event(msgspec.Struct):
    """Event of a stream; one with `error` ends it. Images come in the order in which they are finished."""

    type: str = ""
    index: int = 0
    b64_json: bytes = b""
    error: dict[str, Any] | None = None


def images(connection: Connection, case: Case, headers: Mapping[str, str], deadline: float) -> Answer:
    """Ask `/v1/images/generations`, or `/v1/images/edits` for an edit, and wait for base64."""
    reply = _post_openai(connection, case, headers, deadline)
    if reply.status != 200:
        return _refusal(reply)
    found = msgspec.json.decode(reply.read(), type=_Images)
    queue, drawing = _timing(reply)
    return Answer(
        status=200,
        images=tuple(image.b64_json for image in found.data),
        first_byte=reply.arrived,
        queue=queue,
        drawing=found.inference_time_s if drawing is None else drawing,
    )


def generate(connection: Connection, case: Case, headers: Mapping[str, str], deadline: float) -> Answer:
    """Ask `/api/v1/generate`, which waits for the images."""
    reply = connection.send("POST", "/api/v1/generate", _task_body(case), JSON | dict(headers), deadline)
    if reply.status != 200:
        return _refusal(reply)
    found = msgspec.json.decode(reply.read(), type=_TaskImages)
    queue, drawing = _timing(reply)
    return Answer(status=200, images=tuple(found.images), first_byte=reply.arrived, queue=queue, drawing=drawing)


def tasks(connection: Connection, case: Case, headers: Mapping[str, str], deadline: float) -> Answer:
    """Submit a task to `/v1/generate`, ask for it until it is done, and fetch its images."""
    reply = connection.send("POST", "/v1/generate", _task_body(case), JSON | dict(headers), deadline)
    if reply.status != 200:
        return _refusal(reply)
    first_byte = reply.arrived
    path = f"/v1/task/{msgspec.json.decode(reply.read(), type=_Submitted).task_id}"
    while True:
        reply = connection.send("GET", path, None, headers, deadline)
        if reply.status != 200:
            return _refusal(reply)
        task = msgspec.json.decode(reply.read(), type=_Task)
        if task.status not in ("pending", "running"):
            break
        time.sleep(POLL)
    if task.result is None:
        return Answer(status=200, first_byte=first_byte, error=f"the task is {task.status}: {task.error}"[:MAX_ERROR])
    files = []
    for url in task.result.paths:
        reply = connection.send("GET", urlsplit(url).path, None, headers, deadline)
        if reply.status != 200:
            return _refusal(reply)
        files.append(reply.read())
    drawing = sum(_drawing(each.seconds) for each in task.result.metadata) if task.result.metadata else None
    return Answer(status=200, images=tuple(files), first_byte=first_byte, drawing=drawing)


def stream(connection: Connection, case: Case, headers: Mapping[str, str], deadline: float) -> Answer:
    """Ask OpenAI's endpoint for a stream with partial images."""
    reply = _post_openai(connection, case, headers, deadline, stream=True, partial_images=PREVIEWS)
    if reply.status != 200:
        return _refusal(reply)
    files: dict[int, bytes] = {}
    first_byte = first_preview = None
    for line in reply.lines():
        if not line.startswith(b"data:"):
            continue
        first_byte = first_byte or time.monotonic()
        event = msgspec.json.decode(line[len(b"data:") :], type=_Event)
        if event.error is not None:
            return Answer(status=200, first_byte=first_byte, error=_error_text(event.error))
        if event.type.endswith(".partial_image"):
            first_preview = first_preview or time.monotonic()
        elif event.type.endswith(".completed"):
            files[event.index] = event.b64_json
    error = "" if files else "the stream ended without an image"
    found = tuple(files[index] for index in sorted(files))
    return Answer(status=200, images=found, first_byte=first_byte, first_preview=first_preview, error=error)


ENDPOINTS: Mapping[str, Endpoint] = {"images": images, "generate": generate, "tasks": tasks, "stream": stream}
ONLY_ZIMAGE = ("generate", "tasks", "stream")  # endpoints that other servers do not have, or not in this form


def _post_openai(
    connection: Connection, case: Case, headers: Mapping[str, str], deadline: float, **more: bool | int
) -> Reply:
    kind = case.kind
    body = {"prompt": case.prompt, "size": str(kind.size), "n": kind.images, "seed": case.seed}
    body |= {"response_format": "b64_json"} | _options(case) | more
    if not kind.edit:
        content = json.dumps(body).encode()
        return connection.send("POST", "/v1/images/generations", content, JSON | dict(headers), deadline)
    form = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return connection.send("POST", "/v1/images/edits", _form(case, body), form | dict(headers), deadline)


def _task_body(case: Case) -> bytes:
    kind = case.kind
    body = {"prompt": case.prompt, "width": kind.width, "height": kind.height, "num_images": kind.images}
    body |= {"seed": case.seed} | _options(case)
    if kind.edit:
        body["init_image"] = b64encode(init_image(kind.size)).decode()
    return json.dumps(body).encode()


def _options(case: Case) -> dict[str, Any]:
    """Return the fields that a kind asks for, in the names that all endpoints share."""
    kind = case.kind
    wanted = {
        "num_inference_steps": kind.steps,
        "guidance_scale": kind.guidance_scale,
        "lora": kind.lora,
        "priority": None if kind.priority == "interactive" else kind.priority,
        "timeout": kind.deadline,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _form(case: Case, fields: Mapping[str, Any]) -> bytes:
    """Return a multipart form with the fields and the image to edit."""
    head = f"--{BOUNDARY}\r\ncontent-disposition: form-data; name="
    texts = {name: json.dumps(value) if isinstance(value, bool) else str(value) for name, value in fields.items()}
    parts = "".join(f'{head}"{name}"\r\n\r\n{text}\r\n' for name, text in texts.items())
    file = f'{head}"image"; filename="image.png"\r\ncontent-type: image/png\r\n\r\n'
    return (parts + file).encode() + init_image(case.kind.size) + f"\r\n--{BOUNDARY}--\r\n".encode()


def _timing(reply: Reply) -> tuple[float | None, float | None]:
    """Return the seconds of the queue and of the drawing, as Server-Timing has them."""
    stages: dict[str, float] = {}
    for entry in filter(None, reply.headers.get("server-timing", "").split(",")):
        name, _, rest = entry.strip().partition(";dur=")
        try:
            stages[name] = float(rest) / 1e3
        except ValueError:  # a metric without a duration
            continue
    queue = stages.pop("queue", None)
    return queue, _drawing(stages) if stages else None


def _drawing(stages: Mapping[str, float]) -> float:
    """Return the seconds of all stages; the passes are part of the denoiser's."""
    return sum(seconds for stage, seconds in stages.items() if stage != "passes")


def _refusal(reply: Reply) -> Answer:
    return Answer(
        status=reply.status,
        first_byte=reply.arrived,
        retry_after=_seconds_to_wait(reply.headers.get("retry-after", "")),
        error=f"{reply.status}: {_body_text(reply.read())}",
    )


def _seconds_to_wait(retry_after: str) -> float | None:
    """Return what Retry-After asks for, in seconds or as a date; None if it is neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def _body_text(body: bytes) -> str:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        content = None
    error = content.get("error", content.get("detail")) if isinstance(content, dict) else None
    return _error_text(error) if error is not None else body[:MAX_ERROR].decode("utf-8", "replace")


def _error_text(error: Any) -> str:
    """Return an error's code, or its text where it has none: a text with numbers would never repeat."""
    if isinstance(error, dict):
        return str(error.get("code") or error.get("message"))[:MAX_ERROR]
    return str(error)[:MAX_ERROR]
