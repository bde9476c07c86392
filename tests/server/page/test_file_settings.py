"""Settings that the page reads out of image files, in a real browser."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes.chromium import Browser, browsing, needs_chromium
from fakes.loop import FakeLoop
from fakes.server import serving
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.images.encode import encode
from engine.images.metadata import ImageMetadata, file_metadata
from engine.request import ImageFormat, ImageRequest
from engine.stages import StageTimes

pytestmark = [pytest.mark.slow, needs_chromium]

READ = """
const {settingsFrom} = await import('/page/png-settings.js');
const files = values[0].map(text => new Blob([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))]));
return Promise.all(files.map(settingsFrom));
"""
PIXELS = np.zeros((8, 8, 3), np.uint8)
METADATA = ImageMetadata(
    seed=7,
    width=256,
    height=192,
    num_inference_steps=9,
    forwards=9,
    guidance_scale=0.0,
    plan_id="1",
    precision="fp16",
    flavor="onnx",
    model="nano",
    revised_prompt=None,
    text_tokens=3,
    seconds=StageTimes(),
)
A1111 = (
    'a cat, "quoted"\nin two lines\nNegative prompt: blurry,\nSteps: many\n'
    'Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 18446744073709551615, Size: 512x768, Model: "a, b: c", '
    "Denoising strength: 0.6"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with serving(FakeLoop(), page=True) as url, browsing(tmp_path_factory.mktemp("profile")) as browser:
        browser.driver.get(f"{url}/page/parts.css")  # a document of the page's origin without its scripts
        yield browser


def read(browser: Browser, *files: bytes) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = browser.run(READ, [base64.b64encode(file).decode() for file in files])
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    """A PNG with chunks before its pixels."""
    file = encode(PIXELS)
    return file[:33] + b"".join(chunks) + file[33:]


def test_settings_of_the_server_s_files_are_read_in_every_format(browser: Browser) -> None:
    requests = [
        ImageRequest("a cat on a mat", seed=7),
        ImageRequest('一只猫 "\\ \n<b>&amp;</b> \0', seed=7, negative_prompt="模糊, Steps: 1", guidance_scale=2.5),
        ImageRequest("é", seed=2**64 - 1, lora="a, b: c", lora_strength=-0.5),
    ]
    files, expected = [], []
    for request in requests:
        facts = replace(METADATA, seed=request.seed, guidance_scale=request.guidance_scale or 0.0, lora=request.lora)
        facts = replace(facts, lora_strength=None if request.lora is None else request.lora_strength)
        settings = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": 256,
            "height": 192,
            "num_inference_steps": 9,
            "guidance_scale": facts.guidance_scale,
            "seed": request.seed if request.seed < 2**53 else request.seed % 2**32,
        }
        if request.lora is not None:
            settings |= {"lora": request.lora, "lora_strength": request.lora_strength}
        for kind in ("png", "jpeg", "webp"):
            files.append(encode(PIXELS, ImageFormat(kind), file_metadata(request, facts)))
            expected.append(settings)
    assert read(browser, *files) == expected


def test_parameters_of_other_tools_are_read(browser: Browser) -> None:
    info = PngInfo()
    info.add_text("parameters", A1111)
    text, zipped, international = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(PIXELS).save(text, "PNG", pnginfo=info)
    info = PngInfo()
    info.add_text("parameters", A1111, zip=True)
    Image.fromarray(PIXELS).save(zipped, "PNG", pnginfo=info)
    info = PngInfo()
    info.add_itxt("parameters", A1111, zip=True)
    Image.fromarray(PIXELS).save(international, "PNG", pnginfo=info)
    parameters = {"parameters": A1111}
    files = [file.getvalue() for file in (text, zipped, international)]
    files += [encode(PIXELS, ImageFormat(kind), parameters) for kind in ("jpeg", "webp")]
    expected = {
        "prompt": 'a cat, "quoted"\nin two lines',
        "negative_prompt": "blurry,\nSteps: many",
        "width": 512,
        "height": 768,
        "num_inference_steps": 20,
        "guidance_scale": 6.5,
        "seed": 2**32 - 1,
        "strength": 0.6,
    }
    assert read(browser, *files) == [expected] * len(files)
    tagged = png(chunk(b"tEXt", b"parameters\0a cat <lora:outlines:0.8>\nSteps: 4, Seed: 1"))
    little = Image.Exif()
    little.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a dog\nSteps: 4, Seed: 2"
    block = little.tobytes()  # little endian
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", exif=block)
    found = read(browser, tagged, file.getvalue())
    assert found[0] == {
        "prompt": "a cat",
        "negative_prompt": "",
        "num_inference_steps": 4,
        "seed": 1,
        "lora": "outlines",
        "lora_strength": 0.8,
    }
    assert found[1] is not None and found[1]["prompt"] == "a dog" and found[1]["seed"] == 2


def test_wrong_values_are_left_out(browser: Browser) -> None:
    wrong = {
        "prompt": 5,
        "negative_prompt": "x" * 32_001,
        "width": 0,
        "height": 1.5,
        "num_inference_steps": "9",
        "seed": -1,
        "guidance_scale": 1e300,
        "lora": ["a"],
        "__proto__": {"width": 64},
    }
    records = [json.dumps(wrong), "[]", "null", "7", '"a"', "{", "", '{"seed": 1e3}', '{"seed": 12}', "[" * 50_000]
    files = [png(chunk(b"tEXt", b"zimage-trt\0" + record.encode())) for record in records]
    assert read(browser, *files) == [{}, None, None, None, None, None, None, {}, {"seed": 12}, None]


def test_damaged_and_hostile_files_have_no_settings(browser: Browser) -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)  # 200 kB
    good = encode(PIXELS, ImageFormat("jpeg"), {"parameters": A1111})
    at = good.index(b"Exif\0\0") + 6
    files = [
        b"",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        png(chunk(b"zTXt", b"zimage-trt\0\0" + bomb)),
        png(chunk(b"iTXt", b"zimage-trt\0\1\0\0\0" + bomb)),
        png(chunk(b"zTXt", b"zimage-trt\0\0" + b"no zlib")),
        png(chunk(b"tEXt", b"zimage-trt")),
        png(chunk(b"iTXt", b"zimage-trt\0\1")),
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**32 - 1) + b"tEXt",
        b"\x89PNG\r\n\x1a\n" + (bytes(4) + b"aaaa" + bytes(4)) * 100_000,
        png(chunk(b"tEXt", b"parameters\0" + b"a" * (1 << 20))),
        png(chunk(b"tEXt", b"parameters\0" + b"a:" * 500_000)),
        png(chunk(b"tEXt", b"parameters\0" + b"<lora:" * 100_000 + b"\nSteps: 1" + b'"' * 50_000)),
        png(chunk(b"tEXt", b"parameters\0" + b"\n" * 1_000_000)),
        b"\xff\xd8" + b"\xff\xe1\0\2" * 100_000,
        b"\xff\xd8" + b"\xff" * 1_000_000,
        b"\xff\xd8\xff\xe1\0\0" * 10,
        good[: at + 20],
        good[: at + 4] + b"\xff\xff\xff\xff" + good[at + 8 :],  # the first directory is beyond the end
        good[: at + 4] + bytes(4) + good[at + 8 :],  # its own header
        b"RIFF\0\0\0\0WEBP" + b"EXIF\xff\xff\xff\xffMM",
        b"RIFF\0\0\0\0WEBP" + b"EXIF\0\0\0\0" * 100_000,
        b"RIFF\0\0\0\0WEBP" + b"XMP " + struct.pack("<I", 1_000_000) + b"<zimage:zimage-trt>" * 50_000,
    ]
    for number, file in enumerate(files):
        assert read(browser, file) == [None], number
    rng = np.random.default_rng(0)
    sources = [encode(PIXELS, ImageFormat(kind), {"parameters": A1111}) for kind in ("png", "jpeg", "webp")]
    broken = []
    for index in range(300):
        data = bytearray(sources[index % 3])
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(0, 256)
        broken.append(bytes(data[: rng.integers(1, len(data))]))
    read(browser, *broken)  # no exception
    assert read(browser, *sources)[0] is not None
