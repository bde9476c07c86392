"""deploy/prometheus and the dashboard: read by promtool, and held to the metrics in docs/serving.md.

`tests/test_docs.py` holds that list to the code.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fakes.deployment import DEPLOY
from fakes.processes import ROOT

FOLDER = DEPLOY / "prometheus"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, of Debian's package prometheus")
ROW = re.compile(r"^\| (`(?:zimage_|process_)[^|]+) \|([^|]*)\|", re.MULTILINE)
OF_PROMETHEUS = {"instance", "job", "le"}  # labels
SUFFIXES = re.compile(r"_(?:bucket|sum|count)$")


@needs_promtool
@pytest.mark.parametrize("tests", sorted(path.name for path in FOLDER.glob("*.test.yaml")))
def test_rules_fire_and_rest_as_their_tests_say(tests: str) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(FOLDER / tests))


@needs_promtool
def test_prometheus_reads_its_configuration() -> None:
    assert "SUCCESS: 1 rule files found" in promtool("check", "config", str(FOLDER / "prometheus.yaml"))


def test_every_alert_has_a_test_that_fires_and_one_that_does_not() -> None:
    tests = [
        each
        for path in FOLDER.glob("*.test.yaml")
        for group in yaml.safe_load(path.read_text())["tests"]
        for each in group["alert_rule_test"]
    ]
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts == {each["alertname"] for each in tests if each.get("exp_alerts")}
    assert alerts == {each["alertname"] for each in tests if not each.get("exp_alerts")}


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["annotations"].keys() == {"summary", "action"}, rule["alert"]
            assert rule["labels"]["severity"] in ("page", "ticket")


@needs_promtool
def test_prometheus_reads_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    found = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, text in enumerate(dashboard_expressions())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": found}]}))
    assert f"SUCCESS: {len(found)} rules found" in promtool("check", "rules", str(file))


def test_metrics_and_labels_of_rules_and_dashboard_exist() -> None:
    known = documented()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = set()
    for text in (*(rule["expr"] for rule in rules()), *dashboard_expressions()):
        for name, selector in re.findall(r"\b((?:zimage|process)_\w+)(?:\{([^}]*)\})?", text):
            labels = known.get(SUFFIXES.sub("", name), known.get(name))
            assert labels is not None, name
            assert set(re.findall(r"(\w+)[=!]", selector)) <= labels | OF_PROMETHEUS, text
            used.add(name)
        names = re.findall(r"\b(?:zimage|process)_\w+", text)
        for grouping in re.findall(r"by \(([^)]*)\)", text):
            assert set(re.findall(r"\w+", grouping)) <= known[SUFFIXES.sub("", names[0])] | OF_PROMETHEUS, text
        assert set(re.findall(r"zimage:\w+(?::\w+)*", text)) <= recorded
    assert len(used) > 25


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    for panel in panels:
        grid = panel["gridPos"]
        own = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not own & cells and max(x for x, _ in own) < 24, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in panels}) == len(panels)


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rules() -> Iterator[dict[str, dict[str, str] | str]]:
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]:
        yield from group["rules"]


def dashboard_expressions() -> Iterator[str]:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def documented() -> dict[str, set[str]]:
    """Return the labels of each metric in docs/serving.md."""
    found: dict[str, set[str]] = {"process_resident_memory_bytes": set(), "process_start_time_seconds": set()}
    for names, labels in ROW.findall((ROOT / "docs" / "serving.md").read_text()):
        for name in re.findall(r"`(\w+)[*`]", names):
            found[name] = set(re.findall(r"`(\w+)`", labels))
    found["zimage_worker_process_resident_memory_bytes"] = found["zimage_worker_process_"]
    return found
