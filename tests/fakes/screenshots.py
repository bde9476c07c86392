"""Pictures of the page for the documentation, from a server of nano: `python -m fakes.screenshots URL docs`."""

import argparse
import tempfile
from pathlib import Path

import httpx
from fakes.chromium import Browser, browsing
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

PROMPTS = (
    "a green star and a purple square, on a blue background",
    "a large yellow circle on a black background",
    "a small red triangle to the left of a large blue square, on a white background",
    "an orange circle above a green square",
    "a purple star on a yellow background",
    "a blue circle and a red star, on a white background",
)
RUNNING = "a large red circle on a light background"
DARK = [{"name": "prefers-color-scheme", "value": "dark"}]
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def save(browser: Browser, file: Path) -> None:
    browser.read("document.activeElement.blur()")
    browser.driver.save_screenshot(str(file))
    with Image.open(file) as image:
        image.convert("RGB").quantize(method=Image.Quantize.MEDIANCUT).save(file, optimize=True)


def fill_gallery(url: str) -> None:
    for seed, prompt in enumerate(PROMPTS):
        body = {"prompt": prompt, "seed": seed, "width": 256, "height": 192 if seed % 2 else 256}
        httpx.post(f"{url}/api/v1/generate", json=body, timeout=120).raise_for_status()
        httpx.post(f"{url}/v1/generate", json=body, timeout=120).raise_for_status()


def show_running(browser: Browser) -> None:
    """Show an image of 100 steps with its preview on the stage, and another one that waits."""
    browser.read("document.querySelector('#advanced').open = true")
    browser.write("#steps", "100")
    browser.read("document.querySelector('#advanced').open = false")
    for prompt in (PROMPTS[2], RUNNING):
        browser.generate(prompt)
        browser.find("#stage .stage-prompt", prompt)
    preview = "return document.querySelector('#running img').src"
    browser.until(lambda: browser.read(preview).startswith("data:"), "a preview")
    browser.click("#running .running-tile:first-child .tile")


def paint_mask(browser: Browser, folder: Path) -> None:
    """Open the mask editor with an image of the gallery, and paint."""
    address = browser.read("return document.querySelector('#gallery .tile:last-child img').src")
    (folder / "in.png").write_bytes(httpx.get(address).content)
    browser.driver.find_element("id", "image").send_keys(str(folder / "in.png"))
    browser.click("#image-field button")
    canvas = browser.find(".mask-canvas")
    actions = ActionChains(browser.driver).move_to_element_with_offset(canvas, -120, -60).click_and_hold()
    for x, y in ((-40, -120), (60, -110), (110, -30), (70, 60), (-30, 80), (-110, 40), (-120, -60), (0, 0), (40, -40)):
        actions.move_to_element_with_offset(canvas, x, y)
    actions.release().perform()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    fill_gallery(args.url)
    with tempfile.TemporaryDirectory() as made, browsing(Path(made) / "profile") as browser:
        browser.driver.set_window_size(1360, 1330)
        browser.visit(args.url)
        browser.write("#prompt", PROMPTS[0])
        browser.find("#gallery .tile")
        show_running(browser)
        save(browser, args.folder / "page.png")
        browser.emulate("setEmulatedMedia", features=DARK)
        save(browser, args.folder / "page-dark.png")
        browser.emulate("setEmulatedMedia", features=[])
        browser.driver.set_window_size(1360, 940)
        browser.find("#language").send_keys("中文")
        save(browser, args.folder / "page-zh.png")
        browser.find("#language").send_keys("English")
        browser.emulate("setDeviceMetricsOverride", **PHONE)
        browser.read("scrollTo(0, 0)")
        save(browser, args.folder / "page-phone.png")
        browser.emulate("clearDeviceMetricsOverride")
        paint_mask(browser, Path(made))
        save(browser, args.folder / "page-mask.png")
        browser.press(Keys.ESCAPE)
        browser.click("#gallery .tile")
        browser.find(".viewer-position")
        save(browser, args.folder / "page-viewer.png")


if __name__ == "__main__":
    main()
