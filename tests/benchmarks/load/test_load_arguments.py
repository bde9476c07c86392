"""Arguments of `zimage-bench load` that are refused before anything is sent."""

import pytest

from benchmarks.cli import main


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--rate 1 --users 2", "--rate is an open loop"),
        ("--scenario soak --users 2", "--scenario has its own numbers of users"),
        ("--blocking", "--blocking and --serve-options need --engines"),
        ("--serve-options=--queue=4", "--blocking and --serve-options need --engines"),
        ("--minutes 0.1 --warmup 6", "--warmup must be shorter than a rung of 6 s"),
        ("--slo p95=5", "an objective is p50, "),
        ("--mix nothing.toml", "nothing.toml"),
        ("--html /dev/null/load.html", "cannot write /dev/null/load.html"),
        ("--users 1", "no server answers at http://127.0.0.1:1"),
    ],
)
def test_arguments_that_cannot_be_measured_end_with_one_line(words: str, error: str) -> None:
    with pytest.raises(SystemExit, match=f"^zimage-bench: .*{error}"):
        main(["load", "--url", "http://127.0.0.1:1", *words.split()])
