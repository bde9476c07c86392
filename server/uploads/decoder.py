"""Keeps the decoder's process: starts it when it is needed, kills it if a file takes too long, replaces it if it dies.

Knows processes and time; not who waits (see `uploads`).
"""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from engine.errors import InvalidRequest
from engine.images.preparation import Preparation
from engine.init_image import InitImage
from engine.module_command import module_command
from server.errors import UploadsBusy
from server.uploads.answers import (
    MAX_JSON,
    MAX_PARTS,
    Crashed,
    Decoding,
    InvalidAnswer,
    OutOfMemory,
    Prepared,
    Refused,
    decode_answer,
)
from server.uploads.frames import LENGTHS, READY, encode_frame
from server.uploads.limits import UploadLimits

log = logging.getLogger(__name__)

COMMAND = tuple(module_command("server.uploads.process"))
ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG")  # no keys, no tokens
CHUNK = 1 << 20  # bytes of a file that are given to the pipe at once
KILLED_BY_SYSTEM = -signal.SIGKILL  # its exit status; the machine has too little memory
TOO_MUCH_TIME = -signal.SIGPROF
EXIT_SECONDS = 0.5  # from the end of its output to its exit
KILL_SECONDS = 5.0  # from SIGKILL to its exit
RETRY_AFTER = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Upload:
    """Files of one request. The mask is optional."""

    image: bytes
    mask: bytes | None
    preparation: Preparation


class ProcessDied(Exception):
    """The process ended while it had an upload. `status` is None if it had to be killed."""

    def __init__(self, status: int | None, param: str) -> None:
        super().__init__(f"status {status}")
        self.status, self.param = status, param


class Decoder:
    """One process that prepares one upload at a time.

    Attributes:
        starts: processes started so far.
    """

    def __init__(self, limits: UploadLimits, command: Sequence[str] = COMMAND) -> None:
        self.starts = 0
        self._limits, self._command = limits, command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def prepare(self, upload: Upload) -> InitImage:
        """Return what an upload becomes, in a new process if there is none.

        Raises:
            InvalidRequest: the files cannot be used, or take too much time or memory, or make the process crash.
            UploadsBusy: the machine has no time or memory for them now.
        """
        try:
            return await self._attempt(upload)
        except ProcessDied as died:  # perhaps before it read the upload, such as by the system's lack of memory
            log.warning("the process that decodes uploads ended (%s); trying again in another", died)
        try:
            return await self._attempt(upload)
        except ProcessDied as died:
            log.warning("the process that decodes uploads ended again (%s)", died)
            if died.status == KILLED_BY_SYSTEM:
                raise UploadsBusy("the machine has too little memory to decode images now", RETRY_AFTER) from died
            raise _crash(died.param) from died

    async def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await process.wait()
        except TimeoutError:
            log.error("process %d cannot be killed", process.pid)

    async def _attempt(self, upload: Upload) -> InitImage:
        process = await self._started()
        params = [upload.preparation.image_param]
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._exchange(process, upload, params)
        except TimeoutError as error:
            await self.stop()
            log.warning("decoding %s took more than %g s", params[-1], self._limits.seconds)
            raise UploadsBusy(
                f"the machine is too busy to decode {params[-1]} within {self._limits.seconds:g} s now", RETRY_AFTER
            ) from error
        except InvalidAnswer as error:
            await self.stop()
            log.error("the process that decodes uploads was ended: %s", error)
            raise _crash(params[-1]) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            status = await _exit_status(process)
            await self.stop()
            if status != TOO_MUCH_TIME:
                raise ProcessDied(status, params[-1]) from error
            raise InvalidRequest(
                f"{params[-1]} takes more than {self._limits.cpu_seconds:g} s to decode; send fewer pixels, or save it "
                "again in an image editor",
                params[-1],
            ) from error
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self.stop()
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command,
                str(self._limits.memory),
                str(self._limits.cpu_seconds),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
                limit=CHUNK,
            )
            self.starts += 1
            assert process.stdout is not None
            async with asyncio.timeout(self._limits.start):
                ready = await process.stdout.read(1)
        except (OSError, TimeoutError) as error:
            await self.stop()
            log.error("the process that decodes uploads cannot be started: %s", error)
            raise UploadsBusy("the machine cannot decode images now", RETRY_AFTER) from error
        if ready != READY:
            status = await _exit_status(process)
            await self.stop()
            log.error("the process that decodes uploads failed at its start; its exit status is %s", status)
            raise UploadsBusy("the machine cannot decode images now", RETRY_AFTER)
        return process

    async def _exchange(self, process: asyncio.subprocess.Process, upload: Upload, params: list[str]) -> InitImage:
        """Send an upload and read the answer. `params` gets the field that is being decoded."""
        assert process.stdin is not None and process.stdout is not None
        facts = {"preparation": asdict(upload.preparation), "limits": asdict(self._limits.file)}
        parts = [upload.image] if upload.mask is None else [upload.image, upload.mask]
        for piece in encode_frame(facts, parts):
            for offset in range(0, len(piece), CHUNK):
                process.stdin.write(memoryview(piece)[offset : offset + CHUNK])
                await process.stdin.drain()
        while True:
            of_json, of_parts = LENGTHS.unpack(await process.stdout.readexactly(LENGTHS.size))
            if of_json > MAX_JSON or of_parts > MAX_PARTS:
                raise InvalidAnswer(f"an answer of {of_json} and {of_parts} bytes")
            answer = decode_answer(await process.stdout.readexactly(of_json))
            if sum(answer.lengths) != of_parts or any(length < 0 for length in answer.lengths):
                raise InvalidAnswer(f"parts of {answer.lengths} bytes in {of_parts}")
            received = [await process.stdout.readexactly(length) for length in answer.lengths]
            match answer:
                case Crashed(message=message):
                    raise InvalidAnswer(message)
                case Decoding(param=param):
                    params.append(param)
                case Refused(message=message, param=param):
                    raise InvalidRequest(message, param)
                case OutOfMemory(param=param):
                    raise InvalidRequest(
                        f"{param} must be decoded in {self._limits.memory / 1e6:.0f} MB and takes more; send fewer "
                        "pixels, or save it again in an image editor",
                        param,
                    )
                case Prepared():
                    return answer.init_image(received)


def _crash(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param} cannot be decoded: its decoder crashes. Open it in an image editor and save it again", param
    )


async def _exit_status(process: asyncio.subprocess.Process) -> int | None:
    """Return the exit status of a process that has closed its output; None if it goes on."""
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            return await process.wait()
    except TimeoutError:
        return None
