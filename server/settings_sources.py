"""Sources of settings: flags, environment variables and a file; and the help of the commands that have them.

Knows the form of settings; not what they mean.
"""

import argparse
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import NoDecode

from engine.command_line import add_version, prepare, text_encoding, user_path
from server.setting_types import EMPTY
from server.settings import HOST_SETTINGS, PREFIX, Settings

GROUPS = {  # groups of options in the help, by the setting that each begins with
    "host": "addresses and connections",
    "page": "what is served",
    "devices": "devices",
    "loras": "LoRAs, jobs and images",
    "keys": "clients",
    "grace": "process",
    "broker": "fleet",
    "hang_seconds": "workers, probes and log",
}
EPILOG = f"""\

Every option can also be set by an environment variable ({PREFIX}%s=%s) or in a file of such lines (--settings or
{PREFIX}SETTINGS). Flags override the environment, which overrides the file.
"""
PROTECTING = ("keys", "rate", "hosts", "trusted_proxies")  # settings that must not be lost by an empty variable
NAME = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=", re.MULTILINE)  # in a line of a settings file


@dataclass(frozen=True, slots=True)
class Command:
    """A command with settings.

    Attributes:
        settings: names of those that it has.
        settings_type: class with their help, types and defaults, which may differ from those of `zimage-serve`.
    """

    name: str
    description: str
    epilog: str
    settings: Collection[str]
    settings_type: type[Settings]

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The settings by name."""
        return {name: field for name, field in self.settings_type.model_fields.items() if name in self.settings}


SERVE = Command(
    "zimage-serve",
    "Serve the plans of Z-Image-Turbo over HTTP.",
    """\
examples:
  zimage-serve --engines engines
  zimage-serve --engines engines --host 0.0.0.0 --keys "key-of-alice key-of-bob" --database jobs.db
  zimage-serve --engines engines --devices all      (every GPU of this machine)
  zimage-serve --engines engines --broker redis://broker:6379/0 --database postgresql://zimage@database/zimage
                                                    (an API replica; zimage-worker generates the images)
"""
    + EPILOG % ("PORT", "8000"),
    [name for name in Settings.model_fields if name not in HOST_SETTINGS],
    Settings,
)


def read(argv: Sequence[str] | None = None, command: Command = SERVE) -> Settings:
    """Read settings from flags, environment and file; like argparse, exit with status 2 if they are wrong."""
    parser = _parser(command)
    given = vars(parser.parse_args(argv))
    name = given.pop("settings", None) or os.environ.get(f"{PREFIX}SETTINGS")
    file = None if name is None else user_path(name)
    encoding = None if file is None else _check_file(parser, file)
    try:  # its signature is that of the fields
        found = command.settings_type(_env_file=file, _env_file_encoding=encoding, **given)  # type: ignore[call-arg]
    except ValidationError as error:
        parser.error("; ".join(map(_message, error.errors())))
    for name in sorted(_emptied(file, encoding) - found.model_fields_set):
        parser.error(f"--{name.replace('_', '-')}: {PREFIX}{name.upper()} {EMPTY}")
    return found


def unknown(environment: Iterable[str]) -> list[str]:
    """Return the environment variables that look like settings but are not."""
    known = {PREFIX + name.upper() for name in (*Settings.model_fields, "settings")}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def _check_file(parser: argparse.ArgumentParser, file: Path) -> str:
    """Return the encoding of a settings file; exit like argparse if its text or its names are wrong."""
    if not file.is_file():
        parser.error(f"--settings: {file} is not a file")
    try:
        encoding = text_encoding(file)
    except (ValueError, OSError) as error:
        parser.error(f"--settings: {error}")
    if lost := [name for name in NAME.findall(file.read_text(encoding)) if name.lower() in Settings.model_fields]:
        parser.error(f"--settings: {', '.join(lost)} in {file}: names must begin with {PREFIX}")
    return encoding


def _emptied(file: Path | None, encoding: str | None) -> set[str]:
    """Return the protecting settings that are named by the environment or a file; empty values count as unset."""
    named = {name.lower() for name in (*os.environ, *(dotenv_values(file, encoding=encoding) if file else ()))}
    return {name for name in PROTECTING if (PREFIX + name).lower() in named}


def _parser(command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        command.name,
        description=command.description,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    prepare(parser)
    parser.add_argument("--settings", metavar="FILE", help=f"File of settings, as lines such as {PREFIX}PORT=8000")
    add_version(parser)
    group = parser.add_argument_group("plans")
    for name, setting in command.fields.items():
        group = parser.add_argument_group(GROUPS[name]) if name in GROUPS else group
        group.add_argument(f"--{name.replace('_', '-')}", help=_help(setting), **_kind(name, setting))
    return parser


def _help(setting: FieldInfo) -> str:
    match setting.default:
        case _ if setting.is_required():
            default = " (required)"
        case None | ():  # not set
            default = ""
        case bool(value):
            default = f" (default: {'yes' if value else 'no'})"
        case tuple(words):
            default = f" (default: {' '.join(words)})"
        case value:
            default = f" (default: {value:g})" if isinstance(value, float) else f" (default: {value})"
    return f"{setting.description}{default}".replace("%", "%%")


def _kind(name: str, setting: FieldInfo) -> dict[str, Any]:
    if setting.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = get_args(setting.annotation) if get_origin(setting.annotation) is Literal else ()
    metavar = "|".join(choices) or setting.title or name.rpartition("_")[2].upper()
    return {"metavar": metavar, "action": "append" if NoDecode in setting.metadata else "store"}


def _message(error: ErrorDetails) -> str:
    name = str(error["loc"][0]).lower().removeprefix(PREFIX.lower()) if error["loc"] else ""
    if error["type"] == "extra_forbidden":  # in the file; argparse refuses unknown flags
        return f"{PREFIX}{name.upper()} in the file is not a setting"
    message = error["msg"].removeprefix("Value error, ")
    return f"--{name.replace('_', '-')}: {message}" if name else message
