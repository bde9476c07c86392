"""Types of settings: how texts of flags and variables become values. Knows no setting."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from engine.command_line import user_path
from engine.errors import InvalidRequest
from engine.size import Size
from server.api.api_key import check_api_key
from server.api.dialects.names import NONE, parse_dialect
from server.api.public_address import PublicAddress
from server.http.host_names import parse_host
from server.http.origins import parse_origin
from server.jobs.admission.rate import Rate
from server.jobs.storage.databases.open_database import SERVER
from server.jobs.storage.images.image_store import check_url
from server.worker.devices import RequestedDevices

FLEET = re.compile(r"[a-z0-9-]{1,40}")
EMPTY = "is empty; perhaps the secret that should fill it does not exist. Give it a value, or unset it to do without"


def _words(value: object) -> object:
    """Split "a b" and ["a", "b c"] at spaces; names of profiles contain commas."""
    parts = [value] if isinstance(value, str) else value
    return [word for part in parts for word in str(part).split()] if isinstance(parts, (list, tuple)) else value


def _sizes(value: object) -> object:
    """Read the sizes in "WxH,WxH" or in a list of words."""
    words = _words(value)
    try:
        return [Size.parse(size) for word in words for size in word.split(",")] if isinstance(words, list) else value
    except InvalidRequest as error:
        raise ValueError(str(error)) from error


def _rate(value: str) -> str:
    Rate.parse(value)
    return value


def _host(value: str) -> str:
    if not value.strip():  # such as an unset variable; a socket would listen on every interface
        raise ValueError("must not be empty; use 0.0.0.0 to listen on every interface")
    return value.strip("[]")


def _public_name(value: str) -> str:
    if parse_host(value) is None:
        raise ValueError(f"must be host names such as images.example.com, without http:// and paths; got {value!r}")
    return value


def _public_url(value: str) -> str:
    if parse_host(PublicAddress.parse(value).host) is None:  # no request could have this host
        raise ValueError(f"must have a host name such as example.com, in ASCII (xn--... for others); got {value!r}")
    return value


def _images_url(value: str) -> str:
    check_url(value)
    return value


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError as error:
        raise ValueError(f"must be addresses or networks such as 127.0.0.1 or 10.0.0.0/8; {error}") from error


def _without_none(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return no dialects for `none`."""
    if NONE in value and len(value) > 1:
        raise ValueError(f"must be {NONE} alone, or without it; got {' '.join(value)}")
    return () if NONE in value else value


def _given(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError(EMPTY)
    return value


def _database(value: object) -> object:
    """Return the path of an SQLite file, or the URL of a database server."""
    if isinstance(value, str) and value.startswith(SERVER):
        return value
    if "://" in str(value):  # not quoted, since it may contain a password
        raise ValueError("must be an SQLite file or postgresql://user:password@host/name; got a URL of another kind")
    return user_path(Path(str(value)))


def _broker(value: str) -> str:
    try:
        from server.fleet.messaging.broker import Broker, InvalidBroker
    except ImportError as error:
        raise ValueError(f"needs the extra fleet; in the checkout: pip install '.[fleet]' ({error})") from error
    try:
        Broker(value)
    except InvalidBroker as error:
        raise ValueError(str(error)) from error
    return value


def _fleet(value: str) -> str:
    if not FLEET.fullmatch(value):
        raise ValueError(f"must be 1 to 40 lower-case letters, digits and hyphens; got {value!r}")
    return value


def _devices(value: str) -> str:
    RequestedDevices.parse(value)
    return value


BrokerUrl = Annotated[str, AfterValidator(_broker)]
DatabasePlace = Annotated[Path | str, BeforeValidator(_database)]
DevicesText = Annotated[str, AfterValidator(_devices)]
FleetName = Annotated[str, AfterValidator(_fleet)]
Host = Annotated[str, AfterValidator(_host)]
PublicUrl = Annotated[str, AfterValidator(_public_url)]
ImagesUrl = Annotated[str, AfterValidator(_images_url)]
RateText = Annotated[str, AfterValidator(_rate)]
UserPath = Annotated[Path, AfterValidator(user_path)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Keys = Annotated[
    tuple[Annotated[str, AfterValidator(check_api_key)], ...], NoDecode, BeforeValidator(_words), AfterValidator(_given)
]
Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(_public_name)], ...], NoDecode, BeforeValidator(_words), AfterValidator(_given)
]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...], NoDecode, BeforeValidator(_words), AfterValidator(_given)
]
Dialects = Annotated[
    tuple[Annotated[str, AfterValidator(parse_dialect)], ...],
    NoDecode,
    BeforeValidator(_words),
    AfterValidator(_without_none),
]
Origins = Annotated[tuple[Annotated[str, AfterValidator(parse_origin)], ...], NoDecode, BeforeValidator(_words)]
Sizes = Annotated[tuple[Size, ...], NoDecode, BeforeValidator(_sizes)]
