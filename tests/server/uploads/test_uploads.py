"""Uploads are prepared in a process of their own, which is bounded, killed and replaced."""

import asyncio
import gc
import io
import json
import os
import signal
import struct
import sys
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from engine.errors import InvalidRequest
from engine.images.decode import decode
from engine.images.header import DecodeLimits
from engine.images.preparation import Preparation
from engine.images.prepare import prepare
from engine.size import Size, SizeLimits, SizeRange
from server.errors import UploadsBusy
from server.uploads.answers import InvalidAnswer, Prepared, decode_answer
from server.uploads.limits import UploadLimits
from server.uploads.uploads import Uploads

SIZES = SizeLimits(16, (SizeRange(64, 256, 64, 256),), Size(128, 128))
PLAIN = Preparation(SIZES)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


RED = file(Image.new("RGB", (100, 80), "red"))
HALF = Image.new("L", (100, 80))
HALF.paste(255, (0, 0, 50, 80))
MASK = file(HALF)


def slow_file(rows: int = 6000) -> bytes:
    """A PNG of few kilobytes and 36 million pixels that takes long to inflate, unfilter and convert."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 6000, rows, 16, 6, 0, 0, 0)  # RGBA of 16 bits
    data = zlib.compress(bytes(rows * (1 + 8 * 6000)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@asynccontextmanager
async def opened(limits: UploadLimits | None = None, command: tuple[str, ...] = ()) -> AsyncIterator[Uploads]:
    # a loaded machine must not fail tests of other things: wall time is long here
    limits = limits or UploadLimits(seconds=60, cpu_seconds=30)
    uploads = Uploads(limits, command) if command else Uploads(limits)
    try:
        yield uploads
    finally:
        await uploads.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_upload_equals_what_is_prepared_in_this_process() -> None:
    preparation = Preparation(SIZES, 128, 64, "stretch", padding_mask_crop=8)

    async def test() -> None:
        async with opened() as uploads:
            image = await uploads.prepare(RED, MASK, preparation)
            expected = prepare(decode(RED).image, decode(MASK, is_mask=True).image, preparation)
            assert image == expected
            assert image.paste is not None and image.sha256 == expected.digest()
            again = await uploads.prepare(RED, None, PLAIN)
            assert (again.size, again.mask, uploads.decoder.starts) == ((96, 80), None, 1)

    run(test)


def test_server_imports_neither_pillow_nor_numpy_and_starts_no_process_before_the_first_upload() -> None:
    program = (
        "import sys; from server.uploads.uploads import Uploads; uploads = Uploads(); "
        "assert uploads.decoder.starts == 0; print(sorted({'PIL', 'numpy'} & set(sys.modules)))"
    )
    done = asyncio.run(_output(program))
    assert done == "[]\n"


def test_decoders_process_imports_only_pillow() -> None:
    program = (
        "import sys; plain = set(sys.modules); import server.uploads.process; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - plain} - sys.stdlib_module_names))"
    )
    assert asyncio.run(_output(program)) == "['PIL', 'engine', 'server']\n"


async def _output(program: str) -> str:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP"])
def test_confined_process_reads_every_format_with_exif_and_profile(kind: str) -> None:
    """It can open no module any more, so all that Pillow imports on demand must be there."""
    options: dict[str, Any] = {}
    if kind in ("PNG", "JPEG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif.tobytes(), "icc_profile": b"not a profile"}
    if kind == "MPO":
        options = {"save_all": True, "append_images": [Image.new("RGB", (100, 80))]}

    async def test() -> None:
        async with opened() as uploads:
            image = await uploads.prepare(file(Image.new("RGB", (100, 80), "red"), kind, **options), None, PLAIN)
            assert image.size == ((80, 96) if "exif" in options else (96, 80))
            assert uploads.decoder.starts == 1

    run(test)


def test_process_has_no_secrets_and_can_open_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIMAGE_API_KEYS", "secret")

    async def test() -> None:
        async with opened() as uploads:
            await uploads.prepare(RED, None, PLAIN)
            process = psutil.Process(uploads.decoder.pid)
            assert set(process.environ()) <= {"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_CTYPE"}
            assert process.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
            assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
            assert process.rlimit(psutil.RLIMIT_AS) == (uploads.limits.memory,) * 2
            assert sorted(os.listdir(f"/proc/{process.pid}/fd")) == ["0", "1", "2"]  # noqa: PTH208

    run(test)


@pytest.mark.parametrize(
    ("image", "mask", "preparation", "param", "message"),
    [
        (b"", None, PLAIN, "image", "image is empty; send a PNG, JPEG, WebP, GIF or BMP file"),
        (RED, b"GIF89a", PLAIN, "mask", "mask is damaged: its GIF header states no size"),
        (RED[:-30], None, PLAIN, "image", "image is damaged or incomplete: its PNG data cannot be decoded"),
        (RED, file(Image.new("L", (9, 9))), PLAIN, "mask", "mask must select something to draw anew"),
        (RED, None, Preparation(SIZES, padding_mask_crop=0), "padding_mask_crop", "padding_mask_crop needs a mask"),
        (RED, None, Preparation(SIZES, 1024, 64), "size", "size must be within 64..256 x 64..256"),
        (b"<svg/>", None, Preparation(SIZES, image_param="init_image"), "init_image", "init_image must be a PNG, "),
    ],
)
def test_refusals_name_the_field(
    image: bytes, mask: bytes | None, preparation: Preparation, param: str, message: str
) -> None:
    async def test() -> None:
        async with opened() as uploads:
            with pytest.raises(InvalidRequest, match=message) as refusal:
                await uploads.prepare(image, mask, preparation)
            assert refusal.value.param == param

    run(test)


def test_file_that_takes_too_much_cpu_time_is_refused_and_the_next_is_prepared() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=60, cpu_seconds=0.15)) as uploads:
            with pytest.raises(InvalidRequest, match=r"image takes more than 0.15 s to decode") as refusal:
                await uploads.prepare(slow_file(), None, PLAIN)
            assert refusal.value.param == "image"
            with pytest.raises(InvalidRequest, match=r"mask takes more than 0.15 s to decode") as refusal:
                await uploads.prepare(RED, slow_file(), PLAIN)
            assert refusal.value.param == "mask"
            assert (await uploads.prepare(RED, None, PLAIN)).size == (96, 80)
            assert uploads.decoder.starts == 3

    run(test)


def test_file_that_takes_too_long_on_a_busy_machine_may_come_again() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=0.1, cpu_seconds=30)) as uploads:
            with pytest.raises(UploadsBusy, match=r"the machine is too busy to decode image within 0\.1 s") as refusal:
                await uploads.prepare(slow_file(), None, PLAIN)
            assert refusal.value.retry_after > 0
            assert uploads.decoder.pid is None

    run(test)


def test_file_that_takes_too_much_memory_is_refused() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=60, cpu_seconds=30, memory=150_000_000)) as uploads:
            with pytest.raises(InvalidRequest, match="image must be decoded in 150 MB and takes more"):
                await uploads.prepare(slow_file(), None, PLAIN)
            assert (await uploads.prepare(RED, None, PLAIN)).size == (96, 80)
            assert uploads.decoder.starts == 1

    run(test)


def test_process_that_was_killed_between_uploads_is_replaced_unnoticed() -> None:
    async def test() -> None:
        async with opened() as uploads:
            await uploads.prepare(RED, None, PLAIN)
            assert uploads.decoder.pid is not None
            os.kill(uploads.decoder.pid, signal.SIGKILL)
            assert (await uploads.prepare(RED, None, PLAIN)).size == (96, 80)
            assert uploads.decoder.starts == 2

    run(test)


FAKE = "import sys, os; sys.stdout.buffer.write(b'R'); sys.stdout.buffer.flush(); sys.stdin.buffer.read(20); "


@pytest.mark.parametrize(
    ("program", "error", "message", "starts"),
    [
        (FAKE + "os._exit(1)", InvalidRequest, "image cannot be decoded: its decoder crashes", 2),
        (FAKE + "os.kill(os.getpid(), 11)", InvalidRequest, "image cannot be decoded: its decoder crashes", 2),
        (FAKE + "os.kill(os.getpid(), 9)", UploadsBusy, "too little memory", 2),
        (FAKE + "os.write(1, b'\\xff' * 12)", InvalidRequest, "its decoder crashes", 1),
        (FAKE + "os.write(1, bytes([0,0,0,2]) + bytes(8) + b'{}')", InvalidRequest, "its decoder crashes", 1),
        (FAKE + "os.close(1); sys.stdin.read()", InvalidRequest, "its decoder crashes", 2),
        ("import os; os._exit(1)", UploadsBusy, "cannot decode images now", 1),
        ("print('hello')", UploadsBusy, "cannot decode images now", 1),
        ("print('hello', flush=True); input()", UploadsBusy, "cannot decode images now", 1),
    ],
)
def test_process_that_crashes_is_replaced_once_and_one_that_answers_nonsense_is_ended(
    program: str, error: type[Exception], message: str, starts: int
) -> None:
    async def test() -> None:
        async with opened(command=(sys.executable, "-c", program)) as uploads:
            with pytest.raises(error, match=message):
                await uploads.prepare(RED, None, PLAIN)
            assert uploads.decoder.starts == starts
            assert uploads.decoder.pid is None

    run(test)


ANSWER = {"type": "prepared", "size": (1, 1), "notes": ["a note"], "sha256": "0" * 64}


@pytest.mark.parametrize(
    "change",
    [
        {"notes": ["a\r\nset-cookie: b=c"]},
        {"notes": ["a\n"]},
        {"notes": ["a"] * 9},
        {"sha256": "0" * 64 + "\n"},
        {"size": (-1, -1)},
        {"size": (1, 2)},
        {"paste": {"size": (1, 1), "box": (0, 0, 2, 1)}},
    ],
)
def test_answer_that_no_intact_process_gives_is_refused(change: dict[str, Any]) -> None:
    intact = decode_answer(json.dumps(ANSWER).encode())
    assert isinstance(intact, Prepared) and intact.init_image([bytes(3)]).notes == ("a note",)
    with pytest.raises(InvalidAnswer):
        answer = decode_answer(json.dumps(ANSWER | change).encode())
        assert isinstance(answer, Prepared)
        answer.init_image([bytes(3)])


def test_command_that_does_not_exist_is_no_fault_of_the_file(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(command=(str(tmp_path / "missing"),)) as uploads:
            for _ in range(2):
                with pytest.raises(UploadsBusy, match="cannot decode images now"):
                    await uploads.prepare(RED, None, PLAIN)

    run(test)


HANG = FAKE + "sys.stdin.buffer.read(); import time; time.sleep(60)"


async def started(uploads: Uploads, *clients: str) -> list["asyncio.Task[Any]"]:
    """Begin an upload of each client while the first one is being decoded."""
    tasks = [asyncio.create_task(uploads.prepare(RED, None, PLAIN, clients[0]))]
    while uploads.decoder.pid is None:
        await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(uploads.prepare(RED, None, PLAIN, client)) for client in clients[1:]]
    await asyncio.sleep(0)
    return tasks


def test_uploads_beyond_those_that_may_wait_are_refused() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=60, waiting=4), (sys.executable, "-c", HANG)) as uploads:
            tasks = await started(uploads, "a", "a", "a")
            with pytest.raises(UploadsBusy, match=r"too many images wait to be decoded \(2\)"):
                await uploads.prepare(RED, None, PLAIN, "a")
            tasks.append(asyncio.create_task(uploads.prepare(RED, None, PLAIN, "b")))  # others find room
            await asyncio.sleep(0)
            for client in ("a", "b"):
                with pytest.raises(UploadsBusy, match=r"too many images wait to be decoded \(3\)"):
                    await uploads.prepare(RED, None, PLAIN, client)
            with pytest.raises(InvalidRequest, match="empty"):  # known without the process
                await uploads.prepare(b"", None, PLAIN, "a")
            await uploads.close()
            for task in tasks:
                with pytest.raises(UploadsBusy, match="shutting down"):
                    await task

    run(test)


def test_client_with_many_uploads_does_not_hold_up_others() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=60, cpu_seconds=30, waiting=64)) as uploads:
            order: list[str] = []
            tasks = await started(uploads, *["flood"] * 6, "other")
            for task, name in zip(tasks, [*["flood"] * 6, "other"], strict=True):
                task.add_done_callback(lambda _, name=name: order.append(name))
            await asyncio.gather(*tasks)
            assert order.index("other") <= 1

    run(test)


def test_upload_that_has_waited_too_long_is_refused() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=0.3, patience=0.2), (sys.executable, "-c", HANG)) as uploads:
            tasks = await started(uploads, "a", "b")
            with pytest.raises(UploadsBusy, match="the machine is too busy"):
                await tasks[0]
            with pytest.raises(UploadsBusy, match="too many images wait"):
                await tasks[1]
            assert uploads.decoder.starts == 1

    run(test)


def test_close_leaves_no_process_and_no_upload_waiting() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=60), (sys.executable, "-c", HANG)) as uploads:
            task = asyncio.create_task(uploads.prepare(RED, None, PLAIN))
            while uploads.decoder.pid is None:
                await asyncio.sleep(0.01)
            pid = uploads.decoder.pid
            await uploads.close()
            assert not psutil.pid_exists(pid)
            with pytest.raises(UploadsBusy):
                await task
            with pytest.raises(UploadsBusy, match="shutting down"):
                await uploads.prepare(RED, None, PLAIN)

    run(test)


def test_cancelled_upload_is_dropped_and_the_next_is_prepared() -> None:
    async def test() -> None:
        async with opened() as uploads:
            running = asyncio.create_task(uploads.prepare(slow_file(), None, PLAIN))
            waiting = asyncio.create_task(uploads.prepare(RED, None, PLAIN))
            while uploads.decoder.pid is None:
                await asyncio.sleep(0.01)
            running.cancel()
            waiting.cancel()
            assert (await uploads.prepare(RED, None, PLAIN)).size == (96, 80)
            assert running.cancelled() and waiting.cancelled()
            assert uploads.decoder.starts == 1

    run(test)


class Tracked(Preparation):
    """A preparation whose end can be seen, and with it that of the files beside it."""


@pytest.mark.parametrize("image", [RED[:-30], RED])
def test_files_do_not_stay_in_memory_until_the_next_garbage_collection(image: bytes) -> None:
    async def test() -> None:
        async with opened() as uploads:
            preparation = Tracked(SIZES)
            alive = weakref.ref(preparation)
            try:
                await uploads.prepare(image, RED[:-30], preparation)
            except InvalidRequest as error:
                del error
            del preparation
            await asyncio.sleep(0)
            assert alive() is None

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


def test_files_of_a_cancelled_upload_leave_the_queue_at_once() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=60, waiting=2), (sys.executable, "-c", HANG)) as uploads:
            tasks = await started(uploads, "a")
            preparation = Tracked(SIZES)
            alive = weakref.ref(preparation)
            waiting = asyncio.create_task(uploads.prepare(RED, None, preparation, "a"))
            del preparation
            await asyncio.sleep(0)
            with pytest.raises(UploadsBusy, match="too many images wait"):
                await uploads.prepare(RED, None, PLAIN, "a")
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            del waiting
            await asyncio.sleep(0)
            assert alive() is None
            tasks += await started(uploads, "a")  # its place is free
            await uploads.close()
            for task in tasks:
                with pytest.raises(UploadsBusy, match="shutting down"):
                    await task

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


def test_process_ends_when_no_uploads_come_and_starts_again() -> None:
    async def test() -> None:
        async with opened(UploadLimits(seconds=60, cpu_seconds=30, idle=0.05)) as uploads:
            await uploads.prepare(RED, None, PLAIN)
            while uploads.decoder.pid is not None:
                await asyncio.sleep(0.01)
            await uploads.prepare(RED, None, PLAIN)
            assert uploads.decoder.starts == 2

    run(test)


def test_process_ends_with_its_server() -> None:
    async def test() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server.uploads.process", "1500000000", "1.8",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        assert await process.stdout.read(1) == b"R"
        process.stdin.close()
        assert await process.wait() == 0

    run(test)


def test_file_larger_than_allowed_is_refused_without_a_process() -> None:
    async def test() -> None:
        limits = UploadLimits(file=DecodeLimits(max_bytes=len(RED) - 1, max_pixels=8000))
        async with opened(limits) as uploads:
            with pytest.raises(InvalidRequest, match=r"image must have at most .* MB, got .* MB"):
                await uploads.prepare(RED, None, PLAIN)
        async with opened(UploadLimits(file=DecodeLimits(max_pixels=7999))) as uploads:
            with pytest.raises(InvalidRequest, match=r"image must have at most 0\.007999 million pixels, got 100x80"):
                await uploads.prepare(RED, None, PLAIN)
            assert uploads.decoder.starts == 0

    run(test)


@pytest.mark.parametrize("image", [RED[:-40], b"no image" * 100, RED])
def test_files_are_freed_at_once_also_if_they_are_refused(image: bytes) -> None:
    """Cycles would keep them in memory until the next full collection, which a busy server seldom makes."""
    image = bytes(bytearray(image))

    async def prepare() -> None:
        uploads = Uploads()
        with suppress(InvalidRequest):
            await uploads.prepare(image, None, PLAIN)
        await uploads.close()

    gc.disable()
    try:
        before = sys.getrefcount(image)
        asyncio.run(prepare())
        assert sys.getrefcount(image) == before
    finally:
        gc.enable()
