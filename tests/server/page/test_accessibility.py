"""The page for everybody: axe-core's rules in every state, phones, and an image to start from with a painted mask."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fakes.accessibility import axe_script, serious_findings
from fakes.chromium import Browser, needs_chromium
from fakes.loop import FakeLoop
from fakes.server import serving
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from engine.images.encode import encode

pytestmark = [pytest.mark.slow, needs_chromium]

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}

DROP = """
const transfer = new DataTransfer(), canvas = document.createElement('canvas');
const blob = await new Promise(resolve => canvas.toBlob(resolve));
transfer.items.add(new File([blob], 'image', {type: 'image/png'}));
document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""


@pytest.fixture(scope="module")
def axe() -> str:
    return axe_script()


@pytest.fixture
def slow_url() -> Iterator[str]:
    with serving(FakeLoop(0.3), page=True) as url:
        yield url


def upload(browser: Browser, folder: Path) -> None:
    """Choose an image of 128x96 pixels to start from."""
    file = folder / "in.png"
    file.write_bytes(encode(np.full((96, 128, 3), 200, np.uint8)))
    browser.driver.find_element("id", "image").send_keys(str(file))
    browser.find("#image-field button", "Paint a mask")


def paint(browser: Browser) -> None:
    """Paint a stroke through the middle of the image, and use the mask."""
    browser.click("#image-field button", "Paint a mask")
    canvas = browser.find(".mask-canvas")
    actions = ActionChains(browser.driver).move_to_element_with_offset(canvas, -60, 0).click_and_hold()
    actions.move_to_element_with_offset(canvas, 60, 0).release().perform()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_has_a_serious_finding(slow_url: str, browser: Browser, axe: str, tmp_path: Path, scheme: str) -> None:
    browser.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        browser.visit(slow_url)
        states = {"empty": serious_findings(browser, axe)}
        browser.click("#advanced summary")
        browser.write("#guidance", "3")
        browser.write("#steps", "1")
        browser.click("#generate")
        browser.find("#problem")
        states["form"] = serious_findings(browser, axe)
        browser.generate("a cat")
        browser.find("#gallery .tile")
        states["gallery"] = serious_findings(browser, axe)
        browser.click("#gallery .tile")
        browser.find(".viewer-position")
        states["viewer"] = serious_findings(browser, axe)
        browser.click(".viewer button", "Delete")
        browser.find(".notice button")
        states["notice"] = serious_findings(browser, axe)
        browser.write("#steps", "100")
        browser.generate("one")
        browser.generate("two")
        browser.find("#running .running-tile")
        states["running"] = serious_findings(browser, axe)
        upload(browser, tmp_path)
        paint(browser)
        states["mask"] = serious_findings(browser, axe)
        browser.click(".mask-dialog button", "Use this mask")
        browser.find("#language").send_keys("中文")
        browser.find("#generate", "生成")
        states["Chinese"] = serious_findings(browser, axe)
    finally:
        browser.emulate("setEmulatedMedia", features=[])
        browser.run("localStorage.clear()")
    assert states == {name: [] for name in states}


def test_phone_has_everything_without_scrolling_sideways(url: str, browser: Browser, tmp_path: Path) -> None:
    browser.emulate("setDeviceMetricsOverride", **PHONE)
    try:
        browser.visit(url)

        def is_narrow() -> bool:
            return bool(browser.read("return document.scrollingElement.scrollWidth <= 390"))

        assert is_narrow()
        browser.click("#advanced summary")
        browser.write("#steps", "2")
        browser.generate("a cat with a very long name " * 5 + "x" * 200)
        browser.click("#gallery .tile")
        browser.find(".viewer-position", "Image 1 of 1")
        assert is_narrow()
        browser.press(Keys.ESCAPE)
        upload(browser, tmp_path)
        paint(browser)
        assert is_narrow()
        browser.click(".mask-dialog button", "Use this mask")
        assert is_narrow()
    finally:
        browser.emulate("clearDeviceMetricsOverride")


def test_image_to_start_from_reaches_the_request_with_its_mask_and_strength(
    url: str, browser: Browser, tmp_path: Path
) -> None:
    browser.visit(url)
    upload(browser, tmp_path)
    assert browser.find("#image-field output").text == "0.6"
    paint(browser)
    browser.run(DROP)  # on the mask editor, which goes on with its image
    browser.click(".mask-dialog button", "Use this mask")
    browser.find("#image-field", "Only the painted part")
    browser.read(
        "const range = document.querySelector('#strength'); range.value = 0.5;"
        " range.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    browser.generate("a red circle")
    browser.find("#gallery .tile")
    (task,) = httpx.get(f"{url}/v1/tasks").json()["tasks"]
    metadata = task["result"]["metadata"][0]
    assert (metadata["width"], metadata["height"], metadata["strength"]) == (128, 96, 0.5)
    assert metadata["init_image"]
    browser.click("#image-field button.sign")
    assert browser.read("return document.activeElement.id") == "image"
    browser.generate("a blue circle")
    browser.until(lambda: len(browser.all("#gallery .tile")) == 2, "the second image")
    upload(browser, tmp_path)
    browser.click("#stage button", "Again with another seed")  # of an image that was made from text alone
    browser.until(lambda: len(browser.all("#gallery .tile")) == 3, "the third image")
    newest = httpx.get(f"{url}/v1/tasks").json()["tasks"][0]
    assert newest["prompt"] == "a blue circle" and newest["result"]["metadata"][0]["strength"] is None
