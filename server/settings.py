"""What can be set of a server: by flag, by environment (ZIMAGE_*), by file, in this order of precedence.

Knows names, units and limits; not what is done with them. Defaults are those of the classes that use them.
"""

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.errors import InvalidRequest, ZImageError
from engine.options import ABOUT, MAX_THREADS, CudaGraphs, RuntimeOptions
from engine.size import Size
from server.jobs.admission import Limits
from server.jobs.archive import DAY, Archive
from server.logs import LogFormat
from server.serving import Serving
from server.worker.supervisor import WorkerTimeouts

PREFIX = "ZIMAGE_"
SEATS = 12  # images between two of their steps: three batches of four
MIB = 1 << 20
MAX_DAYS = 36_500
NAME = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=", re.MULTILINE)  # of a line of a settings file

FoundLoras = tuple[tuple[str, Path], ...]  # name and file of each

RUNTIME, SERVING, LIMITS, PATIENCE = RuntimeOptions(), Serving(), Limits(), WorkerTimeouts()


def _words(value: object) -> object:
    """ "a b" and ["a", "b c"] to their words; profiles' names hold commas."""
    parts = [value] if isinstance(value, str) else value
    return [word for part in parts for word in str(part).split()] if isinstance(parts, (list, tuple)) else value


def _sizes(value: object) -> object:
    """Read sizes from "WxH,WxH" or from words."""
    words = _words(value)
    try:
        return [Size.parse(size) for word in words for size in word.split(",")] if isinstance(words, list) else value
    except InvalidRequest as error:
        raise ValueError(str(error)) from error


def _key(value: str) -> str:
    if not re.fullmatch(r"[!-~]{1,255}", value):
        raise ValueError("a key must be of visible ASCII characters: others do not come through headers")
    return value


def _rate(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*/(second|minute|hour|day)", value):
        raise ValueError(f"must be a number per second, minute, hour or day, such as 30/minute, got {value!r}")
    return value


def _host(value: str) -> str:
    if not value.strip():  # an unset variable; to the socket it would mean every interface
        raise ValueError("must not be empty; 0.0.0.0 listens on every interface")
    return value.strip("[]")


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Keys = Annotated[tuple[Annotated[str, AfterValidator(_key)], ...], NoDecode, BeforeValidator(_words)]
Sizes = Annotated[tuple[Size, ...], NoDecode, BeforeValidator(_sizes)]


class Settings(BaseSettings):
    """Everything that can be set. Lists are words with spaces between them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, validate_default=False)

    engines: Path = Field(description="what build-engines --output wrote", title="DIR")
    host: Annotated[str, AfterValidator(_host)] = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="0 for a free one")
    page: bool = Field(SERVING.page, description="a page at / to generate from in a browser")

    threads: int = Field(RUNTIME.threads, ge=0, le=MAX_THREADS, description=ABOUT["threads"])
    profile: Words = Field(RUNTIME.profiles, description=f"{ABOUT['profiles']}; default: all", title="NAME")
    warm_up: Sizes = Field(RUNTIME.warm_up, description=ABOUT["warm_up"], title="WxH,...")
    cuda_graphs: CudaGraphs = Field(RUNTIME.cuda_graphs, description=ABOUT["cuda_graphs"])
    offload: bool = Field(RUNTIME.offload, description=ABOUT["offload"])
    runtime_cache: Path | None = Field(RUNTIME.runtime_cache, description=ABOUT["runtime_cache"], title="DIR")

    loras: Path | None = Field(
        None, description="folder of LoRAs by zimage-lora, which requests ask for by the files' names", title="DIR"
    )
    database: Path | None = Field(
        SERVING.database, description="keeps jobs and images, so that they survive a restart", title="FILE"
    )
    history_days: float = Field(
        LIMITS.history / DAY, ge=0, le=MAX_DAYS, description="for which jobs that ended are kept"
    )
    history_mb: int = Field(LIMITS.history_bytes // MIB, ge=0, description="of those jobs, images included")
    archive: Path | None = Field(
        None, description="folder that keeps every image as generated_YYYYMMDD_HHMMSS_ID.png", title="DIR"
    )
    archive_days: float = Field(7.0, ge=0, le=MAX_DAYS, description="after which an image leaves it; 0 for never")
    archive_mb: int | None = Field(None, gt=0, description="of the archive, from where on its oldest images leave")

    keys: Keys = Field(
        SERVING.keys,
        description="API keys, one of which a request must bring; better not as a flag, which ps shows",
        repr=False,
    )
    rate: Annotated[str, AfterValidator(_rate)] | None = Field(
        SERVING.rate, description="requests per key, or else per address, such as 30/minute"
    )
    queue: int = Field(LIMITS.queue, ge=1, description="jobs that may be unfinished at once")
    min_free_mb: int = Field(
        LIMITS.free_bytes // MIB, ge=0, description="of the machine's memory, below which no job is accepted"
    )
    grace: float = Field(SERVING.grace, ge=0, le=3600, description="seconds that images have left after SIGTERM")
    hang_seconds: float = Field(
        PATIENCE.silence,
        gt=0,
        le=86400,
        description="after which a silent worker is replaced; longer than the longest step",
    )
    load_seconds: float = Field(PATIENCE.load, gt=0, le=86400, description="that a worker may take to load the plans")

    log_format: LogFormat = Field("text", description="json writes an object a line")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged at least")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        try:
            self.runtime()
        except ZImageError as error:
            raise ValueError(str(error)) from error
        return self

    def runtime(self, loras: FoundLoras = ()) -> RuntimeOptions:
        """How plans are run. Raises ZImageError for options that exclude each other."""
        return RuntimeOptions(
            threads=self.threads,
            profiles=self.profile,
            warm_up=self.warm_up,
            cuda_graphs=self.cuda_graphs,
            offload=self.offload,
            runtime_cache=self.runtime_cache,
            slots=SEATS,
            loras=loras,
        )

    def serving(self, loras: FoundLoras = ()) -> Serving:
        """How the server runs."""
        archive_bytes = None if self.archive_mb is None else self.archive_mb * MIB
        return Serving(
            grace=self.grace,
            database=self.database,
            archive=Archive(self.archive, self.archive_days * DAY or None, archive_bytes) if self.archive else None,
            keys=self.keys,
            rate=self.rate,
            page=self.page,
            loras=tuple(name for name, _ in loras),
            limits=Limits(self.queue, self.history_days * DAY, self.history_mb * MIB, self.min_free_mb * MIB),
            timeouts=WorkerTimeouts(load=self.load_seconds, silence=self.hang_seconds),
        )


def read(argv: Sequence[str] | None = None) -> Settings:
    """Settings from flags, environment and file; like argparse it ends the process with 2 if they are none."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    file = given.pop("settings", None) or os.environ.get(f"{PREFIX}SETTINGS")
    if file is not None and not Path(file).is_file():
        parser.error(f"--settings: there is no file {file}")
    if file is not None and (lost := _unprefixed(Path(file))):
        parser.error(f"--settings: {', '.join(lost)} in {file}: names begin with {PREFIX}")
    try:
        return Settings(_env_file=file, **given)  # type: ignore[call-arg]  # its signature is that of the fields
    except ValidationError as error:
        parser.error("; ".join(map(_explained, error.errors())))


def unknown(environment: Iterable[str]) -> list[str]:
    """Variables that look like settings and are none."""
    known = {PREFIX + name.upper() for name in (*Settings.model_fields, "settings")}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def _unprefixed(file: Path) -> list[str]:
    """Names of a file's lines that would be settings if they began as those do."""
    return [name for name in NAME.findall(file.read_text(errors="replace")) if name.lower() in Settings.model_fields]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "zimage-serve",
        description="Serves a plan directory over HTTP.",
        epilog=f"Each can be set in the environment too, as {PREFIX}PORT, or in a file of such lines (--settings, "
        f"{PREFIX}SETTINGS); a flag goes before the environment, and that before the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--settings", metavar="FILE", help=f"lines of the form {PREFIX}PORT=8000")
    for name, field in Settings.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=_help(field), **_kind(name, field))
    return parser


def _help(field: FieldInfo) -> str:
    match field.default:
        case _ if field.is_required():
            told = "; required"
        case None | ():  # not set
            told = ""
        case bool(value):
            told = f"; default: {'yes' if value else 'no'}"
        case value:
            told = f"; default: {value:g}" if isinstance(value, float) else f"; default: {value}"
    return f"{field.description}{told}".replace("%", "%%")


def _kind(name: str, field: FieldInfo) -> dict[str, Any]:
    if field.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    metavar = "|".join(choices) or field.title or name.rpartition("_")[2].upper()
    return {"metavar": metavar, "action": "append" if NoDecode in field.metadata else "store"}


def _explained(error: ErrorDetails) -> str:
    name = str(error["loc"][0]).lower().removeprefix(PREFIX.lower()) if error["loc"] else ""
    if error["type"] == "extra_forbidden":  # flags that are none do not come so far
        return f"{PREFIX}{name.upper()} in the file is no setting"
    message = error["msg"].removeprefix("Value error, ")
    return f"--{name.replace('_', '-')}: {message}" if name else message
