"""Terminals, paths and text files as commands get them."""

import argparse
import io
import sys
from pathlib import Path

import pytest

from engine.command_line import prepare, text_encoding, user_path

TEXT = "# Schlüssel, 键\r\nZIMAGE_PORT=0\r\n"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-32", "utf-32"),
    ],
)
def test_text_is_read_by_its_byte_order_mark_or_as_utf_8(tmp_path: Path, written: str, found: str) -> None:
    (tmp_path / "a").write_bytes(TEXT.encode(written))
    assert text_encoding(tmp_path / "a") == found
    assert (tmp_path / "a").read_bytes().decode(found) == TEXT


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a=1\nb=\xfc\n", r"a is not UTF-8 text \(byte 0xfc in line 2\); save it as UTF-8"),
        ("a=1\n".encode("utf-16-le"), r"\(a zero byte in line 1\)"),
        ("a=1\n".encode("utf-16-be"), r"\(a zero byte in line 1\)"),
        (b"\xff\xfea", "is not UTF-16 text"),
        (b"a\n\n\0", "zero byte in line 3"),
    ],
)
def test_text_of_another_encoding_is_refused_by_its_line(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        text_encoding(tmp_path / "a")


def test_home_is_expanded_and_unknown_users_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    parser = argparse.ArgumentParser()
    prepare(parser)
    parser.add_argument_group("files").add_argument("--output", type=Path)
    assert parser.parse_args(["--output=~/a/b"]).output == Path("/home/ada/a/b")
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    assert user_path(Path("a/~/b")) == Path("a/~/b")


def test_any_text_is_printed_to_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    prepare(argparse.ArgumentParser())
    print("图 \udcff", flush=True)
    assert raw.getvalue() == b"\\u56fe \\udcff\n"
