"""Users of an image server for plain Locust.

locust -f benchmarks/load/locustfile.py --host http://localhost:8000

Settings are environment variables: ZIMAGE_LOAD_ENDPOINT (images), ZIMAGE_LOAD_MIX (a name or a file; square),
ZIMAGE_LOAD_SIZES (instead of a mix), ZIMAGE_LOAD_THINK (seconds; 1), ZIMAGE_LOAD_TIMEOUT (seconds; 60),
ZIMAGE_LOAD_PATIENCE (seconds; 120), ZIMAGE_LOAD_CASES (4), ZIMAGE_LOAD_API_KEY, ZIMAGE_LOAD_SEED (0). At the start of a
test each case is drawn once alone; an image that differs from it later is a failure.
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout: Locust runs this file by its path

from locust import events
from locust.env import Environment

from benchmarks.load import users
from benchmarks.load.client.cases import make_cases
from benchmarks.load.client.endpoints import ENDPOINTS
from benchmarks.load.client.fingerprints import ImageCheck
from benchmarks.load.client.references import draw_references, model_info
from benchmarks.load.plan import CASES, PATIENCE, TIMEOUT, LoadOptions, Rung
from benchmarks.workload.mix import Mix
from benchmarks.workload.scenarios import MIXES, THINK
from engine.errors import ZImageError


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
    rung = Rung(users=1, seconds=float("inf"), warmup=0.0, think=float(_setting("THINK", str(THINK))))
    options = LoadOptions(
        mix=_mix(),
        rungs=(rung,),
        endpoint=_setting("ENDPOINT", "images"),
        api_key=_setting("API_KEY", "") or None,
        patience=float(_setting("PATIENCE", str(PATIENCE))),
        timeout=float(_setting("TIMEOUT", str(TIMEOUT))),
        cases=int(_setting("CASES", str(CASES))),
        seed=int(_setting("SEED", "0")),
    )
    if options.endpoint not in ENDPOINTS:
        raise ValueError(f"ZIMAGE_LOAD_ENDPOINT must be one of {', '.join(ENDPOINTS)}, got {options.endpoint!r}")
    cases = make_cases(options.mix_for(model_info(url, options.headers)), options.cases)
    check = users.in_thread(ImageCheck(draw_references(options.session(url), cases)).require_right)
    return users.RunningRung(rung, options, options.session(url, check), cases)


def _mix() -> Mix | str:
    if sizes := _setting("SIZES", ""):
        return Mix.sizes(sizes)
    name = _setting("MIX", MIXES[0])
    return name if name in MIXES else Mix.read(Path(name))


def _setting(name: str, default: str) -> str:
    return os.environ.get(f"ZIMAGE_LOAD_{name}", default)


events.test_start.add_listener(prepare)
