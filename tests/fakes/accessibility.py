"""axe-core's rules for a page in the browser."""

import importlib.util
from pathlib import Path
from typing import Any

from fakes.chromium import Browser

SERIOUS = ("serious", "critical")
RUN_AXE = "return (await axe.run(document, {resultTypes: ['violations']})).violations"


def axe_script() -> str:
    """Return the script of axe-core, from the package that wraps it for another driver."""
    found = importlib.util.find_spec("axe_playwright_python")
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("axe.min.js").read_text()


def serious_findings(browser: Browser, axe: str) -> list[tuple[str, str]]:
    """Return serious findings in the page as it is now: rule and element."""
    browser.driver.execute_script(axe)
    violations: list[dict[str, Any]] = browser.run(RUN_AXE)
    return [
        (each["id"], node["html"][:120]) for each in violations if each["impact"] in SERIOUS for node in each["nodes"]
    ]
