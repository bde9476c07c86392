"""Hostile files of all kinds are prepared or refused by name, and leave the decoder's process as it was."""

import asyncio
from collections import Counter, defaultdict

import psutil
import pytest

from benchmarks.hostile.files import HostileFile, hostile_files
from engine.errors import InvalidRequest
from engine.images.header import DecodeLimits
from engine.images.preparation import Preparation
from engine.size import Size, SizeLimits, SizeRange
from server.uploads.limits import UploadLimits
from server.uploads.uploads import Uploads

PREPARATION = Preparation(SizeLimits(16, (SizeRange(64, 256, 64, 256),), Size(128, 128)))
PIXELS = 500_000  # as 40 million take seconds each; `zimage-bench uploads` sends those
LIMITS = UploadLimits(DecodeLimits(max_pixels=PIXELS), seconds=60, cpu_seconds=30)
GROWTH = 16_000_000  # bytes


@pytest.mark.slow
def test_hostile_files_are_prepared_or_refused_by_name_and_leave_no_memory() -> None:
    asyncio.run(_send(list(hostile_files(215, seed=1, pixels=PIXELS))))


async def _send(files: list[HostileFile]) -> None:
    uploads = Uploads(LIMITS)
    ordinary = next(file.data for file in files if file.expected == "prepared")
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    try:
        before = await _memory(uploads, ordinary)
        for index, file in enumerate(files):
            is_mask = index % 3 == 0
            image, mask = (ordinary, file.data) if is_mask else (file.data, None)
            try:
                prepared = await uploads.prepare(image, mask, PREPARATION)
            except InvalidRequest as error:
                assert error.param == ("mask" if is_mask else "image")
                assert str(error).startswith(error.param) and len(str(error)) < 300
                outcomes[file.kind]["refused"] += 1
                assert file.expected != "prepared" or is_mask, (file.kind, index, str(error))
            else:
                assert prepared.size in PREPARATION.limits
                outcomes[file.kind]["prepared"] += 1
                assert file.expected != "refused", (file.kind, index)
        assert uploads.decoder.starts == 1  # none of them broke it
        assert await _memory(uploads, ordinary) < before + GROWTH
    finally:
        await uploads.close()
    assert len(outcomes) == 43
    assert sum(outcomes.values(), Counter())["prepared"] > 50
    assert sum(outcomes.values(), Counter())["refused"] > 50


async def _memory(uploads: Uploads, ordinary: bytes) -> int:
    await uploads.prepare(ordinary, None, PREPARATION)
    return int(psutil.Process(uploads.decoder.pid).memory_info().rss)


def test_the_same_seed_gives_the_same_files() -> None:
    assert list(hostile_files(43, 7, 1000)) == list(hostile_files(43, 7, 1000))
    assert list(hostile_files(43, 7, 1000)) != list(hostile_files(43, 8, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("index", [16, 22, 24, 25, 28])
def test_largest_bombs_are_refused_or_prepared_within_the_real_limits(index: int) -> None:
    """One of each of some kinds in full size; none may exceed the memory of the process and so break it."""

    async def send() -> None:
        uploads = Uploads(UploadLimits(seconds=120, cpu_seconds=60))
        try:
            file = list(hostile_files(index + 1))[index]
            try:
                await uploads.prepare(file.data, None, PREPARATION)
            except InvalidRequest as error:
                assert error.param == "image"
            assert uploads.decoder.starts <= 1
        finally:
            await uploads.close()

    asyncio.run(send())
