"""The documents against the code: links, files, options, settings, metrics, errors, examples in Python."""

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from server.api import errors
from server.fleet.fleet_view import FleetView
from server.fleet.messaging.event_bus import EventBus
from server.fleet.metrics import FleetMetrics
from server.jobs.metrics import Metrics
from server.settings import HOST_SETTINGS, PREFIX, Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "examples", "deploy", ".github") for page in ROOT.glob(f"{folder}/**/*.md")),
    ]
)
PACKAGES = ("benchmarks", "deploy", "docs", "engine", "examples", "export", "nano", "scripts", "server", "tests")
COMMANDS = {
    "build-engines": "export.cli",
    "zimage-lora": "export.lora_cli",
    "zimage-generate": "engine.cli",
    "zimage-serve": "server.cli",
    "zimage-worker": "server.worker_cli",
    "zimage-admin": "server.fleet.admin",
}
README_WORDS = 900
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=named)


@every_page
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target.read_text(encoding="utf-8")), link


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    for code in INLINE.findall(without_fences(page.read_text(encoding="utf-8"))):
        if re.fullmatch(rf"(?:{'|'.join(PACKAGES)})/[\w./-]*", code):
            assert (ROOT / code).exists(), code


@every_page
def test_options_in_commands_are_those_of_the_command(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [line for language, block in FENCE.findall(text) if language == "sh" for line in joined(block)]
    for line in [*lines, *INLINE.findall(without_fences(text))]:
        for command, arguments in commands(line):
            for option in OPTION.findall(" ".join(arguments)):
                assert option in options_of(command), f"{command} {option}"


@every_page
def test_options_that_are_named_exist(page: Path) -> None:
    known = set().union(
        *(options_of(command) for command in (*COMMANDS, "zimage-bench")), options_in("scripts", "nano")
    )
    for code in INLINE.findall(without_fences(page.read_text(encoding="utf-8"))):
        if code.startswith("--"):
            assert set(OPTION.findall(code)) <= known, code


@pytest.mark.parametrize("command", ["build-engines", "zimage-lora", "zimage-generate"])
def test_building_describes_every_option(command: str) -> None:
    section = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
    assert options_of(command) - {"--help", "--version"} <= set(OPTION.findall(section))


def test_serving_has_the_tables_that_follow_from_the_code() -> None:
    page = ROOT / "docs" / "serving.md"
    text = page.read_text(encoding="utf-8")
    assert reference().rewritten(text) == text, "run: .venv/bin/python scripts/reference.py"
    of_servers = Settings.model_fields.keys() - HOST_SETTINGS
    assert all(f"`--{name.replace('_', '-')}" in text for name in of_servers)
    assert all(f"`{path}`" in text for path in ("/v1/images/generations", "/v1/task/{task_id}/ws", "/ready", "/"))


@every_page
def test_variables_that_are_named_are_settings(page: Path) -> None:
    found = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", page.read_text(encoding="utf-8")))
    assert found <= {PREFIX + name.upper() for name in (*Settings.model_fields, "settings")}


def test_serving_lists_every_metric_and_no_other() -> None:
    listed = set(re.findall(r"`(zimage_[a-z_]+)`", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")))
    metrics = Metrics()
    FleetMetrics(metrics, EventBus("redis://127.0.0.1:1/0", "zimage"), FleetView)
    counted = re.findall(r"^# TYPE (zimage_\w+) ", metrics.text().decode(), re.MULTILINE)
    counted = [name for name in counted if not name.endswith("_created") and "_process_" not in name]
    sources = " ".join(source("server").values())
    gauges = set(re.findall(r'"(zimage_[a-z_]+)"(?:: |\] = )', sources))
    assert listed == set(counted) | gauges


def test_troubleshooting_lists_every_code_and_no_other() -> None:
    sources = "".join(source("server").values())
    codes = {*errors.STATUS, *errors.CODES.values()}
    codes |= set(re.findall(r'\bcode ?= ?"([a-z_]+)"', sources))
    codes |= set(re.findall(r'(?:JobError|fail|Failed)\(\s*(?:[\w.]+, )?"([a-z_]+)"', sources))
    section = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("## Errors of the HTTP API")[1]
    listed = {code for row in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE) for code in INLINE.findall(row)}
    assert listed == codes


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("## Errors of the HTTP API")[0]
    said = re.sub(r'"\s*\n\s*[fr]?"', "", "\n".join(source("engine", "export", "server", "scripts").values()))
    for message in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE):
        for part in filter(None, (part.strip(" ") for part in message.split("..."))):
            assert part in said, message


def test_every_bound_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("| ")]
    bounds = [row for row in rows if "---" not in row and not row.endswith("| Test |")]
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(source("tests").values()), re.MULTILINE))
    named = [set(re.findall(r"`(test_\w+)`", row)) for row in bounds]
    assert len(bounds) > 50 and all(named)
    assert set().union(*named) <= defined, set().union(*named) - defined


def test_architecture_names_what_is_in_the_files_that_it_links() -> None:
    page = ROOT / "docs" / "architecture.md"
    text = without_fences(page.read_text(encoding="utf-8"))
    for block in re.split(r"\n(?=\||\d+\. |\n)", text):
        linked = [page.parent / link for link in LINK.findall(block) if link.endswith(".py")]
        sources = " ".join(path.read_text(encoding="utf-8") for path in linked)
        for name in INLINE.findall(block) if linked else ():
            if re.fullmatch(r"[A-Za-z_]\w*(\.[a-z_]\w*)?", name):
                assert all(re.search(rf"\b{part}\b", sources) for part in name.split(".")), (name, block)


def test_architecture_names_the_file_that_defines_each_name() -> None:
    """`name` in [file](link), of [file](link) or ([file](link)): this file has a definition of the name."""
    page = ROOT / "docs" / "architecture.md"
    text = re.sub(r"\s+", " ", without_fences(page.read_text(encoding="utf-8")))
    names = r"(`[\w.]+`(?:(?:, | and )`[\w.]+`)*)"
    found = re.findall(rf"{names}(?: in | of | \(|, )\[[^\]]+\]\(([^)]+\.py)\)", text)
    assert len(found) > 60
    for group, link in found:
        source = (page.parent / link).read_text(encoding="utf-8")
        for name in INLINE.findall(group):
            *_, last = name.split(".")
            defined = rf"^ *(?:(?:async )?def|class) {last}\b|^ *(?:self\.)?{last}(?:: [^=]+)? = |^ +{last}: "
            assert re.search(defined, source, re.MULTILINE), (name, link)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_both_readmes_have_the_same_commands_and_links() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))

    def links(text: str) -> set[str]:
        return set(LINK.findall(text)) - {"README.md", "README.zh-CN.md"}

    def run(text: str) -> list[str]:
        return [
            line.split("#")[0].strip()
            for language, block in FENCE.findall(text)
            if language == "sh"
            for line in joined(block)
        ]

    assert links(english) == links(chinese)
    assert run(english) == run(chinese)
    assert [bool(FENCE.search(text)) for text in (english, chinese)] == [True, True]


def test_python_page_runs(engines: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "engines").symlink_to(engines)
    blocks = [
        block
        for language, block in FENCE.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
        if language == "python"
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-"], input="\n".join(blocks), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert len(blocks) >= 4 and done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def headings(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def joined(block: str) -> list[str]:
    """The lines of a shell block, continued ones joined."""
    return block.replace("\\\n", " ").splitlines()


def commands(line: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of this project in a line of shell, with their arguments."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose, or a part of a command
        return
    for index, word in enumerate(words):
        name = Path(word).name
        if name in (*COMMANDS, "zimage-bench"):
            yield name, words[index + 1 :]


@cache
def options_of(command: str) -> set[str]:
    """Long options of a command, from its help; those of zimage-bench, whose parts import PyTorch, from its source."""
    if command == "zimage-bench":
        return options_in("benchmarks") | options_of("zimage-generate")
    main = importlib.import_module(COMMANDS[command]).main
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main(["--help"])
    return set(OPTION.findall(said.getvalue()))


@cache
def options_in(*folders: str) -> set[str]:
    """Long options that the parsers of some folders add."""
    texts = source(*folders).values()
    return {option for text in texts for option in re.findall(r'"(--[a-z][a-z0-9-]*)"', text)}


@cache
def source(*folders: str) -> dict[Path, str]:
    """The text of the Python files and scripts of some folders."""
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in ("", ".py") and path.is_file()
    ]
    return {path: path.read_text(encoding="utf-8") for path in files}


def reference() -> Any:
    """The module scripts/reference.py."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
