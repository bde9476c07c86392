"""Parts of the page alone, in a real browser: mask editor, viewer, languages, prompt history."""

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes.chromium import Browser, browsing, needs_chromium
from fakes.loop import FakeLoop
from fakes.server import serving
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys

from server.page.mount import STATIC

pytestmark = [pytest.mark.slow, needs_chromium]

PROMPTS = "zimage-prompts"
MASK = """
const {MaskEditor} = await import('/page/mask-editor.js');
const canvas = document.createElement('canvas');
[canvas.width, canvas.height] = values;
window.changes = 0;
window.editor = new MaskEditor({onChange: () => { window.changes++; }});
document.body.replaceChildren(window.editor.element);
await window.editor.load(canvas.toDataURL());
"""
VALUE = """
const blob = await window.editor.value();
if (blob === null) return null;
const reader = new FileReader();
return new Promise(resolve => {
  reader.onload = () => resolve(reader.result.split(',')[1]);
  reader.readAsDataURL(blob);
});
"""
VIEWER = """
const {Viewer} = await import('/page/viewer.js');
window.ran = [];
const actions = [
  {key: 'image.reuse', run: item => window.ran.push(['reuse', item.name]), closes: true},
  {key: 'image.delete', run: item => window.viewer.remove(other => other === item), isDanger: true},
];
window.viewer = new Viewer(actions);
window.viewer.element.addEventListener('close', () => window.ran.push(['closed']));
const opener = document.createElement('button');
opener.textContent = 'open';
opener.className = 'opener';
document.body.replaceChildren(opener, window.viewer.element);
const canvas = document.createElement('canvas');
[canvas.width, canvas.height] = [2000, 1500];
const items = ['a', 'b', 'c'].map(name => ({
  src: canvas.toDataURL(), name: `zimage-${name}.png`, prompt: `prompt ${name}`, facts: [['Seed', name]]}));
opener.onclick = () => window.viewer.open(items, 1);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with serving(FakeLoop(), page=True) as url, browsing(tmp_path_factory.mktemp("profile")) as browser:
        browser.driver.get(f"{url}/page/parts.css")  # a document of the page's origin without its scripts
        browser.run("""
            const link = document.createElement('link');
            Object.assign(link, {rel: 'stylesheet', href: '/page/parts.css'});
            document.head.append(link);
        """)
        yield browser


def edit(browser: Browser, width: int, height: int) -> Any:
    """Open the editor with an image, shown pixel by pixel, and return its canvas."""
    browser.run(MASK, width, height)
    browser.run("document.querySelector('.mask-stage').style.width = `${values[0]}px`", min(width, 400))
    return browser.find(".mask-canvas")


def value(browser: Browser) -> np.ndarray | None:
    """The mask as [height, width] booleans; None for no mask."""
    file = browser.run(VALUE)
    if file is None:
        return None
    image = Image.open(io.BytesIO(base64.b64decode(file)))
    assert image.format == "PNG"
    levels = np.asarray(image.convert("RGB"))
    assert (levels[..., 0] == levels[..., 1]).all() and levels[..., 0].max() == 255
    return levels[..., 0] >= 128


def stroke(browser: Browser, canvas: Any, start: tuple[int, int], end: tuple[int, int], kind: str = "mouse") -> None:
    """Draw a line between two points, which are given from the canvas's middle."""
    pointer = PointerInput(kind, kind)
    actions = ActionBuilder(browser.driver, mouse=pointer, duration=20)
    actions.pointer_action.move_to(canvas, *start).pointer_down().move_to(canvas, *end).pointer_up()
    actions.perform()


def press(browser: Browser, *keys: str) -> None:
    browser.driver.switch_to.active_element.send_keys(*keys)


def status(browser: Browser) -> str:
    return browser.find("[role=status]").text


# mask editor


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_strokes_are_white_in_a_mask_of_the_image_s_size(browser: Browser, kind: str) -> None:
    canvas = edit(browser, 400, 300)
    assert value(browser) is None and status(browser) == "Nothing is painted yet."
    stroke(browser, canvas, (-100, 0), (100, 0), kind)
    mask = value(browser)
    assert mask is not None and mask.shape == (300, 400)
    brush = 0.08 * 400
    area = 200 * brush + np.pi * (brush / 2) ** 2
    assert mask[150, 100] and mask[150, 200] and mask[150, 300] and not mask[150, 70] and not mask[100, 200]
    assert 0.9 * area < mask.sum() < 1.1 * area
    assert float(status(browser).removesuffix("% of the image is painted.")) == pytest.approx(
        100 * mask.mean(), abs=0.3
    )


def test_eraser_undo_redo_invert_and_clear(browser: Browser) -> None:
    def painted() -> int:
        mask = value(browser)
        return 0 if mask is None else int(mask.sum())

    canvas = edit(browser, 400, 300)
    undo, redo = browser.find("button", "Undo"), browser.find("button", "Redo")
    assert not undo.is_enabled() and not redo.is_enabled()
    stroke(browser, canvas, (-100, 0), (100, 0))
    whole = painted()
    browser.click("button", "Eraser")
    assert browser.find("button", "Eraser").get_attribute("aria-pressed") == "true"
    stroke(browser, canvas, (0, -50), (0, 50))
    rest = painted()
    assert 0.7 * whole < rest < 0.95 * whole
    mask = value(browser)
    assert mask is not None and not mask[150, 200]
    undo.click()
    assert painted() == whole
    redo.click()
    assert painted() == rest and not redo.is_enabled()
    browser.click("button", "Invert")
    assert abs(painted() - (400 * 300 - rest)) < 200  # pixels on the edges
    browser.click("button", "Clear")
    assert value(browser) is None
    undo.click()
    undo.click()
    assert painted() == rest
    browser.click("button", "Brush")
    stroke(browser, canvas, (100, 100), (100, 100))
    assert painted() > rest and not redo.is_enabled()  # a new stroke ends what could be done again
    assert browser.read("return window.changes") > 8


def test_mask_is_painted_with_keys_alone(browser: Browser) -> None:
    edit(browser, 200, 100)
    browser.run("window.editor.focus()")
    press(browser, " ")
    mask = value(browser)
    assert mask is not None and mask[50, 100] and mask.sum() < 400
    press(browser, Keys.SHIFT, Keys.ARROW_RIGHT * 3)
    line = value(browser)
    assert line is not None and line[50, 120] and line.sum() > mask.sum()
    assert browser.find(".mask-cursor").size["width"] > 5
    press(browser, Keys.CONTROL, "z")
    press(browser, Keys.CONTROL, "z")
    press(browser, Keys.CONTROL, "z")
    assert np.array_equal(value(browser), mask)
    press(browser, Keys.CONTROL, "y")
    press(browser, Keys.CONTROL, Keys.SHIFT, "z")
    press(browser, Keys.CONTROL, Keys.SHIFT, "z")
    assert np.array_equal(value(browser), line)
    press(browser, "e", *"]" * 30)
    press(browser, " ")
    erased = value(browser)
    assert erased is None or erased.sum() < line.sum()
    press(browser, "b", "[", Keys.ARROW_LEFT * 40, Keys.ARROW_UP * 40, " ")
    corner = value(browser)
    assert corner is not None and corner[0, 0]
    press(browser, Keys.DELETE)
    assert value(browser) is None
    press(browser, "i")
    everything = value(browser)
    assert everything is not None and everything.all()


def test_mask_of_a_large_image_is_sharp_and_of_a_huge_one_smaller(browser: Browser) -> None:
    canvas = edit(browser, 3000, 2000)
    stroke(browser, canvas, (-20, 0), (20, 0))
    mask = value(browser)
    assert mask is not None and mask.shape == (2000, 3000) and mask[1000, 1500]
    canvas = edit(browser, 6000, 6000)
    stroke(browser, canvas, (-20, 0), (20, 0))
    mask = value(browser)
    assert mask is not None and mask.shape == (4000, 4000)
    edit(browser, 1, 1)
    browser.run("window.editor.invert()")
    assert np.array_equal(value(browser), [[True]])


def test_mask_dialog_keeps_an_accepted_mask_and_forgets_a_cancelled_one(browser: Browser) -> None:
    browser.run("""
        const {MaskDialog} = await import('/page/mask-dialog.js');
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [400, 300];
        window.masks = [];
        window.dialog = new MaskDialog(mask => window.masks.push(mask?.size ?? null));
        document.body.replaceChildren(window.dialog.element);
        window.reopen = () => window.dialog.open(canvas.toDataURL());
        await window.reopen();
    """)
    stroke(browser, browser.find(".mask-canvas"), (-50, 0), (50, 0))
    browser.click("button", "Use this mask")
    browser.until(lambda: browser.read("return window.masks.length") == 1, "the mask")
    assert browser.read("return window.masks[0]") > 0 and not browser.all("dialog[open]")
    browser.run("await window.reopen()")
    painted = status(browser)
    assert 1 < float(painted.split("%")[0]) < 10
    browser.click("button", "Clear")
    press(browser, Keys.ESCAPE)
    browser.run("await window.reopen()")
    assert status(browser) == painted and browser.read("return window.masks.length") == 1
    browser.click("button", "Clear")
    browser.click("button", "Use this mask")
    browser.until(lambda: browser.read("return window.masks")[1:] == [None], "no mask")


# viewer


def test_viewer_is_used_with_keys_and_returns_the_focus(browser: Browser) -> None:
    def position() -> str:
        return browser.find(".viewer-position").text

    def zoom() -> int:
        return int(browser.find(".viewer-percent").text.rstrip("%"))

    browser.run(VIEWER)
    browser.click(".opener")
    assert position() == "Image 2 of 3" and browser.find(".viewer-prompt").text == "prompt b"
    assert browser.find(".viewer .facts").text.split() == ["Seed", "b"]
    assert browser.find(".viewer a").get_attribute("download") == "zimage-b.png"
    browser.until(zoom, "the image")
    fitting = zoom()
    press(browser, "+")
    assert zoom() > fitting
    press(browser, Keys.ARROW_RIGHT)
    assert position() == "Image 2 of 3"  # moves the enlarged image
    press(browser, "0")
    assert zoom() == fitting
    press(browser, Keys.ARROW_RIGHT)
    assert position() == "Image 3 of 3" and not browser.find(".viewer").find_elements(
        "css selector", ".viewer-next:enabled"
    )
    press(browser, Keys.ARROW_RIGHT)
    press(browser, Keys.HOME)
    assert position() == "Image 1 of 3" and browser.find(".viewer-prompt").text == "prompt a"
    press(browser, Keys.END)
    press(browser, Keys.PAGE_UP)
    assert position() == "Image 2 of 3"
    press(browser, Keys.ESCAPE)
    assert browser.read("return document.activeElement.className") == "opener"
    browser.until(lambda: browser.read("return window.ran") == [["closed"]], "the event of closing")


def test_viewer_zooms_by_wheel_and_pans_and_swipes_by_pointer(browser: Browser) -> None:
    def transform() -> list[float]:
        style = browser.read("return document.querySelector('.viewer-stage img').style.transform")
        return [float(number) for number in re.findall(r"-?[\d.]+", style)]

    browser.run(VIEWER)
    browser.click(".opener")
    stage = browser.find(".viewer-stage")
    browser.until(lambda: browser.find(".viewer-percent").text, "the image")
    wheel = ActionChains(browser.driver)
    wheel.scroll_from_origin(ScrollOrigin.from_element(stage, 100, 0), 0, -500).perform()
    browser.until(lambda: transform()[2] > 1.5, "a larger image")
    x, y, scale = transform()
    assert x == pytest.approx(-100 * (scale - 1), abs=2) and y == pytest.approx(0, abs=1)  # around the pointer
    stroke(browser, stage, (0, 0), (60, 0))
    assert transform()[0] == pytest.approx(x + 60, abs=2)
    browser.click(".viewer-percent")
    assert transform() == [0, 0, 1]
    stroke(browser, stage, (100, 0), (-100, 0), "touch")
    assert browser.find(".viewer-position").text == "Image 3 of 3"
    stroke(browser, stage, (-100, 0), (100, 0), "touch")
    assert browser.find(".viewer-position").text == "Image 2 of 3"
    two = [PointerInput("touch", f"finger{index}") for index in range(2)]
    actions = ActionBuilder(browser.driver, mouse=two[0], duration=20)
    other = actions.add_pointer_input("touch", "second")
    for pointer, side in ((two[0], -1), (other, 1)):
        pointer.create_pointer_move(duration=0, x=20 * side, y=0, origin=stage)
        pointer.create_pointer_down(button=0)
        pointer.create_pointer_move(duration=50, x=80 * side, y=0, origin=stage)
        pointer.create_pointer_up(button=0)
    actions.perform()
    browser.until(lambda: transform()[2] > 2.5, "an image that a pinch has enlarged")
    assert browser.find(".viewer-position").text == "Image 2 of 3"
    press(browser, Keys.ESCAPE)


def test_actions_of_the_viewer_get_its_image_and_deleting_shows_the_next_one(browser: Browser) -> None:
    browser.run(VIEWER)
    browser.click(".opener")
    for prompt, position in (("prompt c", "Image 2 of 2"), ("prompt a", "Image 1 of 1")):
        browser.click(".viewer button", "Delete")
        assert browser.find(".viewer-prompt").text == prompt and browser.find(".viewer-position").text == position
    browser.click(".viewer button", "Use these settings")
    browser.until(
        lambda: sorted(browser.read("return window.ran")) == [["closed"], ["reuse", "zimage-a.png"]],
        "the event of closing",
    )
    browser.click(".opener")
    for _ in range(3):
        browser.click(".viewer button", "Delete")
    browser.until(lambda: not browser.all("dialog[open]"), "a closed viewer")


# languages


def test_languages_have_the_same_messages_with_the_same_values(browser: Browser) -> None:
    messages = browser.run("""
        const [en, zh] = await Promise.all(['en', 'zh'].map(code => import(`/page/messages/${code}.js`)));
        return [en.default, zh.default];
    """)
    names = [
        {key: sorted(set(re.findall(r"\{\w+\}", str(message)))) for key, message in one.items()} for one in messages
    ]
    assert names[0] == names[1] and len(names[0]) > 100
    english, chinese = messages
    plurals = {key for key, message in english.items() if isinstance(message, dict)}
    assert plurals == {key for key, message in chinese.items() if isinstance(message, dict)}
    assert all(english[key].keys() == {"one", "other"} and chinese[key].keys() == {"other"} for key in plurals)
    files = [path for path in STATIC.glob("*.*") if path.suffix in (".js", ".html")]
    page = "".join(path.read_text() for path in files)
    assert [key for key in english if f'"{key}"' not in page] == []  # unused
    han = re.compile("[\u4e00-\u9fff]")
    assert {key for key, message in chinese.items() if not han.search(str(message))} == {"form.lora", "fact.lora"}
    assert not [message for message in english.values() if han.search(str(message))]
    assert not [message for message in chinese.values() if re.search("[\u4e00-\u9fff][,;:!?]", str(message))]


def test_language_is_the_browser_s_until_another_is_chosen(browser: Browser) -> None:
    shown = browser.run("""
        const {language, number, onLanguageChange, setLanguage, t, translate} = await import('/page/i18n.js');
        const root = document.createElement('div');
        root.innerHTML = '<b data-i18n="close"></b><i data-i18n-label="close" data-i18n-title="cancel"></i>';
        document.body.replaceChildren(root);
        const heard = [], found = [];
        const stop = onLanguageChange(code => heard.push(code));
        translate();
        for (const code of ['zh', 'xx', 'en']) {
          const [bold, italic] = root.children;
          found.push([language(), bold.textContent, italic.getAttribute('aria-label'), italic.title,
            document.documentElement.lang, t('run.done', {count: 1}), t('run.done', {count: 2}),
            t('no such key'), t('toString'), t('viewer.position', {index: 1, total: 2000})]);
          setLanguage(code);
        }
        stop();
        setLanguage('zh');
        setLanguage('en');
        return [found, heard, localStorage.getItem('zimage-language')];
    """)
    english = [
        "en",
        "Close",
        "Close",
        "Cancel",
        "en",
        "1 image is ready.",
        "2 images are ready.",
        "no such key",
        "toString",
    ]
    chinese = [
        "zh",
        "关闭",
        "关闭",
        "取消",
        "zh-Hans",
        "1 张图片已生成。",
        "2 张图片已生成。",
        "no such key",
        "toString",
    ]
    found = [
        [*english, "Image 1 of 2000"],
        [*chinese, "第 1 张，共 2000 张"],
        [*chinese, "第 1 张，共 2000 张"],
    ]
    assert shown == [found, ["zh", "en"], "en"]


# prompt history


def test_history_is_bounded_and_survives_what_else_is_in_the_storage(browser: Browser) -> None:
    found = browser.run(
        """
        const {PromptHistory} = await import('/page/prompt-history.js');
        const history = new PromptHistory(), found = [];
        for (const text of values[1]) {
          localStorage.setItem(values[0], text);
          found.push(history.all());
        }
        localStorage.clear();
        for (let number = 0; number < 60; number++) history.add(`prompt ${number}`);
        history.add(' prompt 30 ');
        history.add('  ');
        found.push([history.all().length, ...history.all().slice(0, 2)]);
        history.add('x'.repeat(40000));
        for (let number = 0; number < 9; number++) history.add(String(number).repeat(32000));
        found.push([localStorage.getItem(values[0]).length < 210000, history.all().length]);
        history.clear();
        found.push(history.all());
        const blocked = new PromptHistory(() => { throw new DOMException('no', 'SecurityError'); });
        blocked.add('a');
        blocked.add('b');
        found.push(blocked.all());
        return found;
        """,
        PROMPTS,
        ["[", "{}", "7", "null", '"a"', '["a", 5, null, "", ["b"], "c"]', "[" * 100_000],
    )
    assert found == [[], [], [], [], [], ["a", "c"], [], [50, "prompt 30", "prompt 59"], [True, 6], [], ["b", "a"]]


def test_history_menu_gives_a_prompt_back(browser: Browser) -> None:
    browser.run("""
        const {PromptHistory, historyMenu} = await import('/page/prompt-history.js');
        const history = new PromptHistory();
        history.clear();
        history.add('<b>first</b>');
        history.add('second');
        window.picked = [];
        document.body.replaceChildren(historyMenu(history, prompt => window.picked.push(prompt)));
    """)
    browser.click("button", "History")
    press(browser, Keys.TAB)
    press(browser, Keys.ENTER)
    assert browser.read("return window.picked") == ["<b>first</b>"]
    assert browser.read("return document.activeElement.innerText") == "History"
    browser.click("button", "History")
    browser.click("button", "Forget all")
    browser.find("dialog", "Prompts that you use will be kept here")
    assert not browser.all(".history-entry")
    press(browser, Keys.ESCAPE)
