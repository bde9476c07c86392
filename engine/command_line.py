"""Parts of every command: terminals, paths and files as shells and editors give them, `--version`, and one line for an
error or an interruption. Its imports are fast.
"""

import argparse
import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import ZImageError

BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
INTERRUPTED = 130  # exit status of a process that SIGINT ended, as shells report it


def prepare(parser: argparse.ArgumentParser) -> None:
    """Let a command print any text to any terminal, and expand `~` in its arguments of type `Path`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # such as ASCII: a name of a file must not end the command
            stream.reconfigure(errors="backslashreplace")
    parser.register("type", Path, user_path)


def user_path(text: str | Path) -> Path:
    """Return a path with `~` expanded, which shells leave as it is in --option=~/file and service files."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  # Path.expanduser raises if there is no such user


def parse_lora(text: str) -> tuple[Path, float]:
    """Parse FILE or FILE:STRENGTH. If a file has the whole text as its name, the text has no strength."""
    file, _, strength = text.rpartition(":")
    try:
        return (user_path(file), float(strength)) if file and not user_path(text).is_file() else (user_path(text), 1.0)
    except ValueError:
        return user_path(text), 1.0


def text_encoding(file: Path) -> str:
    """Return the encoding of a text file: that of its byte order mark, or else UTF-8.

    Raises:
        ValueError: the file is in another encoding; the message has the line.
    """
    data = file.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = f"byte 0x{data[error.start]:02x} in line {line}"
        raise ValueError(f"{file} is not {encoding.upper()} text ({found}); save it as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{file} is not UTF-8 text (a zero byte in line {line}); save it as UTF-8")
    return encoding


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """End the process with one line on stderr: with status 1 after an error, 130 after Ctrl-C.

    Args:
        name: name of the command.
    """
    try:
        yield
    except (ZImageError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as interruption:
        what = str(interruption)
        print(f"{name}: interrupted" + (f"; {what}" if what else ""), file=sys.stderr)
        sys.exit(INTERRUPTED)


def add_version(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--version`."""
    parser.add_argument("--version", action=_Version, nargs=0, help="Print the version and exit")


class _Version(argparse.Action):
    """Print the version that is installed; looked up only here, since that takes time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('zimage-trt')}")
        parser.exit()
