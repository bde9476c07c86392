"""A real browser for the tests of the page: Debian's Chromium, driven by Selenium."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's packages chromium and chromium-driver"
)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)
WAIT_SECONDS = 20.0
BUSY = (  # the page has just replaced an element, or still moves it
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
FIND = """
return [...document.querySelectorAll(arguments[0])].find(
    element => element.checkVisibility() && element.innerText.includes(arguments[1]))
"""

WATCH = """
window.problems = [];
const note = (name, text) => window.problems.push(`${name}: ${text}`);
addEventListener('securitypolicyviolation', event => note(event.violatedDirective, event.blockedURI));
addEventListener('error', event => note('error', event.message));
addEventListener('unhandledrejection', event => note('rejection', event.reason));
"""
RUN = """
const values = [...arguments], done = values.pop();
(async (...values) => { %s })(...values).then(
    value => done({value: value ?? null}), error => done({error: String(error.stack ?? error)}))
"""


class Browser:
    """Actions in a tab."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def visit(self, url: str) -> None:
        self.driver.get(url)
        self.find("#generate")

    def until(self, condition: Callable[[], object], description: str) -> object:
        def met(_: object) -> object:
            try:
                return condition()
            except BUSY:
                return False

        return WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=0.02).until(met, description)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def find(self, selector: str, text: str = "") -> WebElement:
        """Wait for a visible element that contains a text."""
        element = self.until(lambda: self.driver.execute_script(FIND, selector, text), f"{selector} with {text!r}")
        assert isinstance(element, WebElement)
        return element

    def read(self, script: str) -> Any:
        """Return the result of a script, which reads the page at one moment."""
        return self.driver.execute_script(script)

    def run(self, script: str, *values: object) -> Any:
        """Return what the body of an asynchronous function returns. It may import modules of the page."""
        answer = self.driver.execute_async_script(RUN % script, *values)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def click(self, selector: str, text: str = "") -> None:
        def clicked() -> bool:
            self.find(selector, text).click()
            return True

        self.until(clicked, f"a click on {selector} with {text!r}")

    def write(self, selector: str, text: str) -> None:
        """Replace the text in an input."""
        field = self.find(selector)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)

    def press(self, *keys: str) -> None:
        """Press keys together where the focus is, or type a text."""
        *held, last = keys
        actions = ActionChains(self.driver)
        for key in held:
            actions.key_down(key)
        actions.send_keys(last)
        for key in held:
            actions.key_up(key)
        actions.perform()

    def generate(self, prompt: str) -> None:
        self.write("#prompt", prompt)
        self.click("#generate")

    def emulate(self, command: str, **values: Any) -> None:
        """Run a command of Chromium's Emulation domain."""
        self.driver.execute_cdp_cmd(f"Emulation.{command}", values)

    def problems(self) -> list[str]:
        """Return what the page has caused since the last call: errors, warnings, violations of its policy."""
        found = self.read("return window.problems.splice(0)")
        return [*found, *(entry["message"] for entry in self.driver.get_log("browser"))]


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Run a browser with a fresh profile."""
    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None and DRIVER is not None
    options.binary_location = CHROMIUM
    for option in (*QUIET.split(), f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    try:
        yield Browser(driver)
    finally:
        driver.quit()
