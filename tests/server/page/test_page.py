"""The page at `/` in a real browser, as a visitor uses it."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fakes.chromium import Browser, needs_chromium
from fakes.hostile import HOSTILE_SERVER, LORA, TEXT
from fakes.loop import NAN_PROMPT, FakeLoop
from fakes.nginx import behind_nginx, needs_nginx
from fakes.processes import FAKE_SERVER, process, ready_url
from fakes.server import serving
from selenium.webdriver.common.keys import Keys

from engine.images.encode import encode
from engine.request import ImageFormat
from server.api.access import AccessPolicy
from server.jobs.admission.admission import Limits

pytestmark = [pytest.mark.slow, needs_chromium]

SLOW = 100  # steps of an image that is still running when its test ends
PAGE = 24  # tasks that the page asks for at once
FIRST, SECOND = "first-key", "second-key"
RECORD = (
    '{"prompt": "from a file", "negative_prompt": "", "width": 96, "height": 128, "num_inference_steps": 5, "seed": 77}'
)
GIVE = """
const bytes = Uint8Array.from(atob(values[1]), letter => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], 'image', {type: values[2]}));
if (values[0] === 'paste') {
  document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true}));
} else {
  for (const name of ['dragenter', 'dragover', 'drop']) {
    document.body.dispatchEvent(new DragEvent(name, {dataTransfer: transfer, bubbles: true, cancelable: true}));
  }
}
"""


@pytest.fixture(autouse=True)
def no_problems(browser: Browser) -> Iterator[None]:
    """Nothing that a test does may cause an error or violate the policy. Leave no page behind."""
    browser.driver.get_log("browser")
    yield
    if browser.driver.current_url.startswith("http"):
        found = browser.problems()
        browser.driver.get("about:blank")
        assert not [problem for problem in found if "Failed to load resource" not in problem], found


def tasks(url: str, **headers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{url}/v1/tasks", headers=headers).json()["tasks"]
    return found


def gallery(browser: Browser) -> list[str]:
    """The prompts in the gallery."""
    titles = browser.read("return [...document.querySelectorAll('#gallery .tile')].map(tile => tile.title)")
    return [str(title) for title in titles]


def wait_for_gallery(browser: Browser, *prompts: str) -> None:
    browser.until(lambda: gallery(browser) == list(prompts), f"{prompts} in the gallery")


def value(browser: Browser, selector: str) -> str:
    return str(browser.read(f"return document.querySelector('{selector}').value"))


def steps(browser: Browser, count: int) -> None:
    """Set the number of steps."""
    browser.read("document.querySelector('#advanced').open = true")
    browser.write("#steps", str(count))


def give(browser: Browser, how: str, file: bytes, kind: str = "image/png") -> None:
    """Drop a file on the page, or paste it."""
    browser.run(GIVE, how, base64.b64encode(file).decode(), kind)


def source(browser: Browser) -> str:
    """The address of the image on the stage."""
    return str(browser.read("return document.querySelector('#stage img').src"))


# from a prompt to an image


def test_image_is_generated_with_progress_and_previews(url: str, browser: Browser) -> None:
    browser.visit(url)
    assert browser.find("#gallery-empty")
    browser.write("#prompt", "a cat on a mat")
    browser.press(Keys.CONTROL, Keys.ENTER)
    browser.find("#stage", "% done")
    browser.until(lambda: source(browser).startswith("data:image/png"), "a preview of it")
    wait_for_gallery(browser, "a cat on a mat")
    assert source(browser).startswith(f"{url}/v1/images/")
    browser.until(lambda: browser.read("return document.querySelector('#stage img').naturalWidth") == 128, "the image")
    task = tasks(url)[0]
    seed = task["result"]["metadata"][0]["seed"]
    assert browser.read("return document.querySelector('#status').textContent") == "1 image is ready."
    assert f"Seed {seed}" in browser.find("#stage").text and "128 × 96" in browser.find("#stage").text
    loaded = browser.read("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(loaded) > 10 and all(name.startswith((url, "data:")) for name in loaded)
    assert browser.driver.get_cookies() == []


def test_ctrl_enter_that_is_held_down_generates_once(url: str, browser: Browser) -> None:
    browser.visit(url)
    steps(browser, 1)
    browser.write("#prompt", "a cat")
    browser.read("for (let i = 0; i < 3; i++) document.querySelector('#form').requestSubmit()")
    wait_for_gallery(browser, "a cat")
    assert len(tasks(url)) == 1


def test_every_input_reaches_the_request(url: str, browser: Browser) -> None:
    browser.visit(url)
    browser.write("#prompt", "two cats")
    browser.click("#shapes label", "4:3")
    browser.click("#counts label", "2")
    browser.click("#advanced summary")
    browser.write("#seed", "41")
    browser.write("#steps", "3")
    browser.write("#guidance", "2.5")
    browser.write("#negative", "dogs")
    browser.find("#format").send_keys("WebP")
    browser.find("#lora").send_keys("outlines")
    browser.write("#lora-strength", "0.5")
    browser.click("#generate")
    wait_for_gallery(browser, "two cats", "two cats")
    found = [(task["settings"], task["result"]["metadata"][0]) for task in reversed(tasks(url))]
    assert [metadata["seed"] for _, metadata in found] == [41, 42]
    for settings, metadata in found:
        assert settings["negative_prompt"] == "dogs" and settings["output_format"] == "webp"
        assert (metadata["num_inference_steps"], metadata["guidance_scale"]) == (3, 2.5)
        assert (metadata["lora"], metadata["lora_strength"]) == ("outlines", 0.5)
        assert metadata["width"] / metadata["height"] == pytest.approx(4 / 3, rel=0.06)
    assert browser.find("#stage a").get_attribute("download") == "zimage-41.webp"
    browser.visit(url)  # the settings are kept
    assert (value(browser, "#prompt"), value(browser, "#steps"), value(browser, "#seed")) == ("two cats", "3", "41")
    assert value(browser, "#negative") == "dogs" and value(browser, "#lora") == "outlines"
    browser.click("#advanced summary")
    browser.click("#reset")
    assert (value(browser, "#prompt"), value(browser, "#steps"), value(browser, "#seed")) == ("two cats", "8", "")


def test_sizes_of_one_s_own_are_rounded_to_what_the_plans_take(url: str, browser: Browser) -> None:
    browser.visit(url)
    browser.click("#shapes label", "Custom size")
    browser.write("#width", "100")
    browser.write("#height", "5000")
    browser.write("#prompt", "a cat")
    assert (value(browser, "#width"), value(browser, "#height")) == ("96", "256")
    browser.click("#generate")
    wait_for_gallery(browser, "a cat")
    settings = tasks(url)[0]["settings"]
    assert (settings["width"], settings["height"]) == (96, 256)


def test_dice_and_lock_of_the_seed(url: str, browser: Browser) -> None:
    browser.visit(url)
    steps(browser, 1)
    browser.click("#dice")
    rolled = value(browser, "#seed")
    assert re.fullmatch(r"\d{1,10}", rolled)
    browser.click("#dice")
    assert value(browser, "#seed") != rolled
    rolled = value(browser, "#seed")
    browser.generate("one")
    wait_for_gallery(browser, "one")
    assert str(tasks(url)[0]["settings"]["seed"]) == rolled
    browser.click("#generate")
    wait_for_gallery(browser, "one", "one")
    browser.click("#lock")
    locked = value(browser, "#seed")
    browser.generate("two")
    wait_for_gallery(browser, "two", "one", "one")
    browser.click("#lock")
    browser.generate("three")
    wait_for_gallery(browser, "three", "two", "one", "one")
    seeds = [str(task["settings"]["seed"]) for task in tasks(url)]
    assert seeds[1] == seeds[2] == locked and seeds[0] != locked and seeds[3] == rolled != seeds[2]


def test_examples_and_history_fill_in_the_prompt(browser: Browser) -> None:
    with process(*HOSTILE_SERVER) as child:
        browser.visit(ready_url(child))
        browser.read("document.querySelector('#examples-box').open = true")
        browser.click("#examples button", "a cat")
        assert value(browser, "#prompt") == "a cat"
        browser.click("#generate")
        wait_for_gallery(browser, "a cat")
        browser.write("#prompt", "")
        browser.click("#history button", "History")
        browser.click(".history-entry", "a cat")
        assert value(browser, "#prompt") == "a cat"


def test_text_of_others_is_shown_as_text(browser: Browser) -> None:
    """Prompts, the model's name, LoRAs and the guide may hold HTML."""
    with process(*HOSTILE_SERVER) as child:
        url = ready_url(child)
        body = {"prompt": TEXT, "lora": LORA, "negative_prompt": TEXT, "guidance_scale": 1}
        task_id = httpx.post(f"{url}/v1/generate", json=body).json()["task_id"]
        browser.visit(url)
        browser.run("localStorage.setItem('zimage-tasks', JSON.stringify(values))", task_id)  # as if it were its own
        browser.visit(url)
        wait_for_gallery(browser, TEXT)
        assert browser.find("#model").text == TEXT
        browser.click("#gallery .tile")
        browser.find(".viewer-prompt", TEXT)
        browser.find(".viewer .facts", LORA)
        browser.click(".viewer button", "Use these settings")
        assert value(browser, "#prompt") == TEXT and value(browser, "#lora") == LORA
        browser.click("#generate")
        wait_for_gallery(browser, TEXT, TEXT)
        browser.click("#history button", "History")
        browser.find(".history-entry", TEXT)
        assert browser.read("return typeof ran") == "undefined"
        assert not browser.all("main script, main svg, header script, header svg")


# what comes of an image


def test_file_is_downloaded_under_its_seed(url: str, browser: Browser, tmp_path: Path) -> None:
    browser.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path), "eventsEnabled": False}
    )
    browser.visit(url)
    steps(browser, 1)
    browser.write("#seed", "12")
    browser.generate("a cat")
    wait_for_gallery(browser, "a cat")
    browser.click("#stage a", "Download")
    file = tmp_path / "zimage-12.png"
    browser.until(file.is_file, "the file")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_settings_are_used_again_with_the_same_or_another_seed(url: str, browser: Browser) -> None:
    browser.visit(url)
    browser.click("#shapes label", "9:16")
    steps(browser, 2)
    browser.write("#seed", "5")
    browser.generate("a cat")
    wait_for_gallery(browser, "a cat")
    browser.click("#reset")
    browser.write("#prompt", "a dog")
    browser.click("#stage button", "Use these settings")
    assert (value(browser, "#prompt"), value(browser, "#steps"), value(browser, "#seed")) == ("a cat", "2", "5")
    browser.click("#stage button", "Again with another seed")
    wait_for_gallery(browser, "a cat", "a cat")
    first, second = (task["settings"] for task in reversed(tasks(url)))
    assert first["seed"] == 5 != second["seed"]
    assert {**first, "seed": 0} == {**second, "seed": 0}


def test_deleting_can_be_undone_and_happens_at_the_latest_when_the_page_is_left(url: str, browser: Browser) -> None:
    for number in range(3):
        httpx.post(f"{url}/v1/generate", json={"prompt": f"image {number}", "steps": 1})
    browser.visit(url)
    wait_for_gallery(browser, "image 2", "image 1", "image 0")
    browser.click("#gallery .tile:nth-child(2)")
    browser.click(".viewer button", "Delete")
    assert browser.find(".viewer-prompt").text == "image 0" and gallery(browser) == ["image 2", "image 0"]
    browser.click(".notice button", "Undo")
    wait_for_gallery(browser, "image 2", "image 1", "image 0")
    browser.press(Keys.ESCAPE)
    browser.click("#gallery .tile:nth-child(3)")
    browser.click(".viewer button", "Delete")
    wait_for_gallery(browser, "image 2", "image 1")
    assert len(tasks(url)) == 3
    browser.visit(url)
    browser.until(lambda: [task["prompt"] for task in tasks(url)] == ["image 2", "image 1"], "the end of the task")
    wait_for_gallery(browser, "image 2", "image 1")


def test_image_beside_a_deleted_one_is_shown_and_the_focus_stays(url: str, browser: Browser) -> None:
    for number in range(2):
        httpx.post(f"{url}/v1/generate", json={"prompt": f"image {number}", "steps": 1})
    browser.visit(url)
    wait_for_gallery(browser, "image 1", "image 0")
    browser.find("#stage", "image 1")
    browser.click("#stage button", "Delete")
    browser.find("#stage", "image 0")
    assert browser.read("return document.activeElement.textContent") == "Delete"
    browser.click("#stage button", "Delete")
    wait_for_gallery(browser)
    assert browser.read("return document.activeElement.id") == "stage"
    browser.all(".notice button")[1].click()
    wait_for_gallery(browser, "image 0")


def test_viewer_shows_all_images_and_their_parameters(url: str, browser: Browser) -> None:
    for number in range(3):
        httpx.post(f"{url}/v1/generate", json={"prompt": f"image {number}", "steps": 1, "seed": number})
    browser.visit(url)
    wait_for_gallery(browser, "image 2", "image 1", "image 0")
    browser.click("#gallery .tile:nth-child(2)")
    assert browser.find(".viewer-position").text == "Image 2 of 3"
    browser.press(Keys.ARROW_RIGHT)
    facts = browser.find(".viewer .facts").text.split("\n")
    shown = dict(zip(facts[::2], facts[1::2], strict=True))
    assert (shown["Seed"], shown["Generated in"]) == ("0", "1 sec")
    assert browser.find(".viewer a").get_attribute("download") == "zimage-0.png"
    browser.press(Keys.ESCAPE)
    assert browser.read("return document.activeElement.title") == "image 1"


def test_image_and_prompt_are_copied(url: str, browser: Browser) -> None:
    for name in ("clipboard-read", "clipboard-write"):
        permission = {"permission": {"name": name}, "setting": "granted", "origin": url}
        browser.driver.execute_cdp_cmd("Browser.setPermission", permission)
    browser.visit(url)
    steps(browser, 1)
    browser.generate("a cat")
    wait_for_gallery(browser, "a cat")
    browser.click("#stage button", "Copy image")
    browser.find(".notice", "clipboard")
    kinds = "return [...await navigator.clipboard.read()].flatMap(item => item.types)"
    assert browser.run(kinds) == ["image/png"]
    browser.click("#stage button", "Copy prompt")
    browser.until(lambda: browser.run("return navigator.clipboard.readText()") == "a cat", "the prompt")


def test_gallery_loads_older_images(browser: Browser) -> None:
    with serving(FakeLoop(), page=True) as url:
        for number in range(PAGE + 3):
            httpx.post(f"{url}/v1/generate", json={"prompt": f"image {number}", "steps": 1})
        prompts = [f"image {number}" for number in reversed(range(PAGE + 3))]
        browser.visit(url)
        wait_for_gallery(browser, *prompts[:PAGE])
        browser.click("#older")
        wait_for_gallery(browser, *prompts)
        assert not browser.find("#gallery").find_elements("xpath", "//*[@id='older' and not(@hidden)]")


def test_ids_that_the_server_has_lost_do_not_hide_older_images(browser: Browser) -> None:
    with serving(FakeLoop(), page=True, policy=AccessPolicy(shared_history=False)) as url:
        task_id = httpx.post(f"{url}/v1/generate", json={"prompt": "old", "steps": 1}).json()["task_id"]
        lost = [f"job_{number:032x}" for number in range(2 * PAGE)]
        browser.visit(url)
        browser.run("localStorage.setItem('zimage-tasks', JSON.stringify(values))", *lost, task_id)
        browser.visit(url)
        browser.until(lambda: gallery(browser) or browser.find("#older").click(), "the image")
        browser.click("#gallery .tile")
        browser.click(".viewer button", "Delete")
        browser.until(lambda: task_id not in browser.read("return localStorage.getItem('zimage-tasks')"), "no id of it")


def test_file_s_settings_are_taken_over_by_drop_and_paste(url: str, browser: Browser) -> None:
    record = {"zimage-trt": RECORD}
    browser.visit(url)
    for how, kind, media_type in (("drop", "png", "image/png"), ("paste", "webp", "image/webp")):
        give(browser, how, encode(np.zeros((64, 64, 3), np.uint8), ImageFormat(kind), record), media_type)
        use_settings(browser)
        browser.until(lambda: value(browser, "#prompt") == "from a file", "the prompt")
        assert (value(browser, "#steps"), value(browser, "#seed")) == ("5", "77")
        assert browser.find("#size-text").text.startswith("96 × 128") or value(browser, "#width") == "96"
        browser.write("#prompt", "")
        browser.click("#advanced summary") if not browser.read(
            "return document.querySelector('#advanced').open"
        ) else None
        browser.click("#reset")
    give(browser, "drop", b"no image", "image/png")
    browser.until(lambda: browser.find("#problem, .notice").text, "a word about it")


def use_settings(browser: Browser) -> None:
    """Take over the settings of an image that was dropped, where it is an image to start from, too."""
    if browser.read("return !document.querySelector('#image-field').hidden"):
        browser.click("#image-field button", "Use the settings of this file")


# several tasks, and tasks of before


def test_several_tasks_run_as_tiles_and_are_cancelled(browser: Browser) -> None:
    with serving(FakeLoop(0.3), page=True) as url:
        browser.visit(url)
        steps(browser, 1)
        browser.generate("zero")
        wait_for_gallery(browser, "zero")  # from now on the server estimates the time
        steps(browser, SLOW)
        for prompt in ("one", "two", "three"):
            browser.generate(prompt)
            browser.find("#stage .stage-prompt", prompt)
        tiles = browser.all("#running .running-tile")
        assert len(tiles) == 3
        browser.until(lambda: "1 image ahead in the queue" in tiles[1].text, "its place in the queue")
        browser.until(lambda: "left" in tiles[0].text and "% done" in tiles[0].text, "the time left")
        tiles[1].find_element("css selector", ".tile-cancel").click()
        browser.until(lambda: len(browser.all("#running .running-tile")) == 2, "one tile less")
        browser.click("#stage button", "Cancel")
        browser.until(
            lambda: {task["prompt"]: task["status"] for task in tasks(url)}["three"] == "cancelled", "its end"
        )
        statuses = {task["prompt"]: task["status"] for task in tasks(url)}
        assert statuses == {"zero": "done", "one": "running", "two": "cancelled", "three": "cancelled"}
        assert gallery(browser) == ["zero"]


def test_running_task_is_found_again_after_a_reload_and_in_another_tab(url: str, browser: Browser) -> None:
    browser.visit(url)
    steps(browser, 60)
    browser.generate("a cat")
    browser.find("#stage", "% done")
    browser.visit(url)
    browser.find("#stage", "% done")
    assert browser.find("#stage").text.count("a cat") == 1
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.visit(url)
    browser.find("#stage", "% done")
    wait_for_gallery(browser, "a cat")
    browser.driver.close()
    browser.driver.switch_to.window(first)
    wait_for_gallery(browser, "a cat")


@contextmanager
def restart_while_generating(browser: Browser, database: str) -> Iterator[str]:
    """Kill a server while the page shows the progress of "a cat", and yield its URL once another one serves it.

    Args:
        database: file of both servers; empty for none.
    """

    def server(port: str) -> tuple[str, ...]:
        return (*FAKE_SERVER, "0.1", "0", database, *[""] * 8, "0", port)

    with process(*server("0")) as child:
        url = ready_url(child)
        browser.visit(url)
        steps(browser, 30)
        browser.generate("a cat")
        browser.find("#stage", "% done")
        child.kill()
        browser.find(".notice", "cannot be reached")
    with process(*server(url.rpartition(":")[2])) as child:
        ready_url(child)
        yield url


def test_task_goes_on_after_a_restart_of_the_server(browser: Browser, tmp_path: Path) -> None:
    with restart_while_generating(browser, str(tmp_path / "jobs.db")) as url:
        wait_for_gallery(browser, "a cat")
        browser.until(lambda: not browser.all(".notice"), "no word about it")
        assert len(tasks(url)) == 1


def test_task_that_is_lost_in_a_restart_without_a_database_is_named(browser: Browser) -> None:
    with restart_while_generating(browser, database=""):
        browser.find(".notice", "no longer knows this image: a cat")
        assert not browser.all("#running .tile")


def test_without_a_shared_history_the_gallery_shows_the_images_of_this_browser(browser: Browser) -> None:
    with serving(FakeLoop(0.02), page=True, policy=AccessPolicy(shared_history=False)) as url:
        httpx.post(f"{url}/v1/generate", json={"prompt": "of another visitor"})
        browser.visit(url)
        browser.find("#gallery-note", "images of this browser")
        browser.generate("mine")
        wait_for_gallery(browser, "mine")
        browser.generate("mine, too")
        wait_for_gallery(browser, "mine, too", "mine")
        browser.visit(url)
        wait_for_gallery(browser, "mine, too", "mine")


def test_page_works_with_a_damaged_storage_and_without_any(url: str, browser: Browser) -> None:
    damaged = ("[1, 'x'", "null", "7", '"a"', '[null, {"a": 1}, ["job_"]]', '{"prompt": 5, "width": "a", "seed": {}}')
    browser.visit(url)
    keys = ("zimage-tasks", "zimage-form", "zimage-prompts", "zimage-language", "zimage-api-key")
    for text in damaged:
        browser.run("for (const key of values[0]) localStorage.setItem(key, values[1]);", keys, text)
        browser.visit(url)
        browser.find("#history button", "History")
    browser.generate("a cat")
    wait_for_gallery(browser, "a cat")
    script = {"source": "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('denied'); }})"}
    added = browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        browser.visit(url)
        browser.generate("a dog")
        wait_for_gallery(browser, "a dog", "a cat")
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


# words


def test_errors_are_in_people_s_words(browser: Browser) -> None:
    with serving(
        FakeLoop(0.05), Limits(queue=1), page=True, policy=AccessPolicy(rate="5/hour", shared_history=True)
    ) as url:
        browser.visit(url)
        browser.click("#generate")
        browser.find("#problem", "Describe the image first.")
        assert browser.read("return document.activeElement.id") == "prompt"
        steps(browser, 101)
        browser.generate("a cat")
        browser.find("#problem", "Steps must be between 1 and 100.")
        steps(browser, 3)
        browser.generate(NAN_PROMPT)
        browser.find("#gallery .failure", "could not be generated")
        assert "NaN" not in browser.find("body").text
        browser.click("#gallery .failure button", "Dismiss")
        steps(browser, SLOW)
        browser.generate("first")
        browser.find("#stage", "first")
        browser.generate("second")
        browser.find("#problem", "The server is busy. Try again in about")
        browser.click("#stage button", "Cancel")
        browser.until(lambda: not browser.all("#stage .stage-progress:not([hidden])"), "its end")
        steps(browser, 1)
        for _ in range(4):
            browser.click("#generate")
            browser.until(lambda: browser.find("#generate").get_attribute("aria-disabled") != "true", "the answer")
        browser.find("#problem", "Too many requests. Try again in")
        browser.find("#language").send_keys("中文")
        browser.click("#generate")
        browser.find("#problem", "请求过于频繁")


def test_language_is_the_browser_s_and_can_be_switched(url: str, browser: Browser) -> None:
    agent = browser.read("return navigator.userAgent")
    browser.emulate("setUserAgentOverride", userAgent=agent, acceptLanguage="zh-CN,zh,en")
    try:
        browser.visit(url)
        assert browser.find("#generate").text == "生成"
        browser.generate("a cat")
        wait_for_gallery(browser, "a cat")
        browser.find("#language").send_keys("English")
        assert browser.find("#generate").text == "Generate" and "Download" in browser.find("#stage").text
        browser.visit(url)
        assert browser.find("#generate").text == "Generate"
        assert browser.read("return document.documentElement.lang") == "en"
    finally:
        browser.emulate("setUserAgentOverride", userAgent=agent, acceptLanguage="en-US,en")


# keys, keyboard, addresses


def test_key_is_asked_for_once_and_sent_as_a_header(browser: Browser) -> None:
    def enter(key: str) -> None:
        browser.write("#key", key)
        browser.press(Keys.ENTER)

    with serving(FakeLoop(0.02), page=True, policy=AccessPolicy((FIRST, SECOND))) as url:
        browser.driver.get(url)
        browser.find("#key")
        assert not browser.find("body").find_elements("css selector", "#work:not([hidden])")
        for wrong in ("wrong", "密钥"):  # no header can hold the second one
            enter(wrong)
            browser.find("#key-problem", "This key is not valid.")
            browser.write("#key", "")
        enter(FIRST)
        browser.find("#generate")
        browser.generate("mine")
        wait_for_gallery(browser, "mine")
        browser.until(lambda: browser.read("return document.querySelector('#stage img').naturalWidth") == 128, "it")
        assert [task["prompt"] for task in tasks(url, **{"x-api-key": FIRST})] == ["mine"]
        browser.visit(url)
        wait_for_gallery(browser, "mine")
        browser.click("#forget-key")
        browser.find("#key")
        enter(SECOND)
        browser.find("#gallery-empty")
        assert gallery(browser) == [] and browser.driver.get_cookies() == []


def test_image_is_generated_and_looked_at_with_keys_alone(url: str, browser: Browser) -> None:
    def tab_to(selector: str, most: int = 60) -> None:
        for _ in range(most):
            if browser.read(f"return document.activeElement.matches({selector!r})"):
                style = browser.read("return getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none" or browser.read("return document.activeElement.matches('input[type=radio]')")
                return
            browser.press(Keys.TAB)
        raise AssertionError(f"Tab does not reach {selector}")

    browser.visit(url)
    tab_to(".skip")
    browser.press(Keys.ENTER)
    tab_to("#prompt", 1)
    browser.press("a cat")
    tab_to("input[name=shape]")
    browser.press(Keys.ARROW_RIGHT)
    tab_to("input[name=count]")
    browser.press(Keys.ARROW_RIGHT)
    tab_to("#generate")
    browser.press(Keys.ENTER)
    wait_for_gallery(browser, "a cat", "a cat")
    assert browser.read("return document.activeElement.id") == "generate"
    shape = tasks(url)[0]["settings"]
    assert shape["width"] < shape["height"]
    tab_to("#gallery .tile")
    browser.press(Keys.ENTER)
    browser.find(".viewer-position", "Image 1 of 2")
    browser.press(Keys.ARROW_RIGHT)
    browser.find(".viewer-position", "Image 2 of 2")
    browser.press(Keys.ESCAPE)
    assert browser.read("return document.activeElement.matches('#gallery .tile')")


@needs_nginx
def test_page_works_behind_nginx_with_a_prefix(url: str, browser: Browser, tmp_path: Path) -> None:
    with behind_nginx(url, tmp_path, prefix="/generate") as proxied:
        browser.visit(f"{proxied}/")
        browser.generate("through a proxy")
        wait_for_gallery(browser, "through a proxy")
        assert source(browser).startswith(f"{proxied}/v1/images/")
        browser.until(lambda: browser.read("return document.querySelector('#stage img').naturalWidth") == 128, "it")
