"""Users of an image server for plain Locust.

locust -f benchmarks/load/locustfile.py --host http://localhost:8000

Settings are environment variables: ZIMAGE_LOAD_ENDPOINT (images), ZIMAGE_LOAD_MIX (a name or a file; square),
ZIMAGE_LOAD_SIZES (instead of a mix), ZIMAGE_LOAD_THINK (seconds; 1), ZIMAGE_LOAD_TIMEOUT (seconds; 60),
ZIMAGE_LOAD_PATIENCE (seconds; 120), ZIMAGE_LOAD_CASES (4), ZIMAGE_LOAD_API_KEY, ZIMAGE_LOAD_SEED (0). At the start of a
test each case is drawn once alone; an image that differs from it later is a failure.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout: Locust runs this file by its path

from locust import events
from locust.env import Environment

from benchmarks.load import users
from benchmarks.load.plan import MAX_IN_FLIGHT, PATIENCE, TIMEOUT, Rung, authorization
from benchmarks.load.requests.cases import make_cases
from benchmarks.load.requests.fingerprints import ImageCheck
from benchmarks.load.requests.references import draw_references, model_info
from benchmarks.load.requests.request import Session
from benchmarks.load.requests.targets import ENDPOINTS
from benchmarks.workload.mix import Mix
from benchmarks.workload.scenarios import MIXES, THINK, named_mix
from engine.errors import ZImageError
from engine.size import Size


class ZImageUser(users.ClosedUser):
    """A user of the server that `--host` names."""


def prepare(environment: Environment, **_: Any) -> None:
    """Draw the references and give the users their requests."""
    if not environment.host:
        sys.exit("locustfile: name the server: --host http://HOST:PORT")
    try:
        ZImageUser.rung = _endless_rung(environment.host.rstrip("/"))
    except (RuntimeError, ValueError, OSError, ZImageError) as error:  # Locust would log it, and go on without
        sys.exit(f"locustfile: {error}")


def _endless_rung(url: str) -> users.RunningRung:
    """Draw the references and return what the users share. Raises RuntimeError, ValueError, OSError, ZImageError."""
    headers = authorization(_setting("API_KEY", ""))
    cases = make_cases(_mix(url, headers), int(_setting("CASES", "4")))
    endpoint = _setting("ENDPOINT", "images")
    if endpoint not in ENDPOINTS:
        raise ValueError(f"ZIMAGE_LOAD_ENDPOINT must be one of {', '.join(ENDPOINTS)}, got {endpoint!r}")
    patience, timeout = float(_setting("PATIENCE", str(PATIENCE))), float(_setting("TIMEOUT", str(TIMEOUT)))

    session = Session(url, ENDPOINTS[endpoint], headers, patience, timeout)
    check = users.in_thread(ImageCheck(draw_references(session, cases)).require_right)
    rung = Rung(users=1, seconds=float("inf"), warmup=0.0, think=float(_setting("THINK", str(THINK))))
    return users.RunningRung(
        rung,
        replace(session, require_right=check, started=time.monotonic()),
        cases,
        max_in_flight=MAX_IN_FLIGHT,
        seed=int(_setting("SEED", "0")),
    )


def _mix(url: str, headers: dict[str, str]) -> Mix:
    if sizes := _setting("SIZES", ""):
        return Mix.sizes(sizes)
    name = _setting("MIX", MIXES[0])
    if name not in MIXES:
        return Mix.read(Path(name))
    info = model_info(url, headers)
    return named_mix(name, Size(1024, 1024) if info is None else Size.parse(info["default_size"]))


def _setting(name: str, default: str) -> str:
    return os.environ.get(f"ZIMAGE_LOAD_{name}", default)


events.test_start.add_listener(prepare)
