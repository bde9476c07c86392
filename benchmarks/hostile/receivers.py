"""Receivers of hostile files: the process of the decoder alone, or zimage-serve. Knows nothing of the files."""

import asyncio
import gc
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.harness.server_process import ServerProcess
from engine.errors import InvalidRequest
from engine.images.preparation import Preparation
from engine.size import Size, SizeLimits, SizeRange
from server.errors import UploadsBusy
from server.uploads.uploads import Uploads

SIZES = SizeLimits(16, (SizeRange(256, 2048, 256, 2048),), Size(1024, 1024))  # Z-Image-Turbo's
SETTLE_SECONDS = 0.5  # in which memory is given back after an answer
BOUNDARY = "2e1f0c"
FIELDS = {"prompt": "a red circle", "size": "64x64", "num_inference_steps": "1", "response_format": "b64_json"}
TIMEOUT = 60.0  # seconds
BUSY = "busy"


class Receiver(Protocol):
    """Takes files one after the other."""

    async def send(self, image: bytes, mask: bytes | None) -> str:
        """Return "prepared", "refused", "busy: ..." if the machine had no time for it, or what went wrong."""
        ...

    async def memory(self) -> dict[str, int]:
        """Return the resident bytes of each process."""
        ...

    async def close(self) -> None: ...


class DecoderReceiver:
    """`Uploads` as the server uses it. The memory of the server is that of this process."""

    def __init__(self) -> None:
        self._uploads = Uploads()

    async def send(self, image: bytes, mask: bytes | None) -> str:
        try:
            await self._uploads.prepare(image, mask, Preparation(SIZES))
        except InvalidRequest as error:
            return _refusal(error.param, str(error))
        except UploadsBusy as error:
            return f"{BUSY}: {error}"
        return "prepared"

    async def memory(self) -> dict[str, int]:
        gc.collect()
        await asyncio.sleep(SETTLE_SECONDS)
        found = {"server": psutil.Process().memory_info().rss}
        return found | {"decoder": psutil.Process(self._uploads.decoder.pid).memory_info().rss}

    async def close(self) -> None:
        await self._uploads.close()


class ServerReceiver:
    """A zimage-serve of some plans, which generates a small image from every file that is prepared."""

    def __init__(self, engines: Path) -> None:
        self._server = ServerProcess(engines)

    async def send(self, image: bytes, mask: bytes | None) -> str:
        return await asyncio.to_thread(self._send, image, mask)

    def _send(self, image: bytes, mask: bytes | None) -> str:
        files = {"image": image} if mask is None else {"image": image, "mask": mask}
        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        request = urllib.request.Request(f"{self._server.url}/v1/images/edits", _form(files), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return "prepared" if json.load(response)["data"] else "no images"
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            if error.code == 429:
                return f"{BUSY}: {text[:200]!r}"
            if error.code not in (400, 413):
                return f"{error.code}: {text[:200]!r}"
            found = json.loads(text)["error"]
            return _refusal(str(found["param"]), found["message"])

    async def memory(self) -> dict[str, int]:
        await asyncio.sleep(SETTLE_SECONDS)
        found = self._server.memory()
        children = self._server.processes["server"].children()
        [decoder] = [child for child in children if "server.uploads.process" in child.cmdline()]
        return found | {"decoder": decoder.memory_info().rss}

    async def close(self) -> None:
        self._server.__exit__()


def _refusal(param: str, message: str) -> str:
    return "refused" if param in ("image", "mask") and len(message) < 400 else f"refused for {param}: {message[:200]}"


def _form(files: dict[str, bytes]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        for name, text in FIELDS.items()
    ]
    for name, data in files.items():
        head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"; filename="{name}.png"\r\n\r\n'
        parts += [head.encode(), data, b"\r\n"]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
