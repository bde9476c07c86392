"""The HTML report in a real browser: its policy, phones, both colour schemes, and axe-core's rules."""

from collections.abc import Iterator

import pytest
from fakes.accessibility import axe_script, serious_findings
from fakes.chromium import Browser, browsing, needs_chromium
from fakes.load_reports import collapse, ladder
from fakes.screenshots import PHONE

from benchmarks.reports.load_report import load_page

pytestmark = [pytest.mark.slow, needs_chromium]

WIDTHS = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
OUTSIDE = """
return [...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(text => {
        const own = text.getBoundingClientRect();
        return own.left < box.left - 1 || own.right > box.right + 1
            || own.top < box.top - 1 || own.bottom > box.bottom + 1;
    }).map(text => text.textContent);
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "report.html"
    reports = [ladder(), collapse()]
    for rung in (rung for report in reports for rung in report["figures"]["rungs"]):
        del rung["timeline"][10:]  # axe-core looks at every cell of the tables
    file.write_text(load_page(reports[0], reports[1:]), encoding="utf-8")
    with browsing(folder / "profile") as found:
        found.driver.get(file.as_uri())
        yield found


def test_page_of_a_load_test_breaks_no_policy_and_fits_its_window(browser: Browser) -> None:
    content, window = browser.read(WIDTHS)
    assert content == window
    assert browser.read(OUTSIDE) == []
    assert browser.problems() == []


def test_phone_scrolls_tables_and_timelines_but_not_the_page(browser: Browser) -> None:
    browser.emulate("setDeviceMetricsOverride", **PHONE)
    content, window = browser.read(WIDTHS)
    outside = browser.read(OUTSIDE)
    browser.emulate("clearDeviceMetricsOverride")
    assert content == window == PHONE["width"]
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_has_no_serious_finding(browser: Browser, scheme: str) -> None:
    browser.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.read("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert serious_findings(browser, axe_script()) == []
