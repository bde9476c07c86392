"""A load to run, as the parent process hands it to the process of Locust: one line of JSON."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from benchmarks.load.client.cases import Case
from benchmarks.load.client.endpoints import ENDPOINTS
from benchmarks.load.client.fingerprints import Fingerprint
from benchmarks.load.client.request import RequireRight, Session
from benchmarks.workload.mix import Mix
from benchmarks.workload.scenarios import named_mix
from engine.size import Size

MAX_IN_FLIGHT = 1000  # requests of an open loop
PATIENCE, TIMEOUT = 120.0, 60.0  # seconds
CASES = 4  # of each kind
DEFAULT_SIZE = Size(1024, 1024)  # of a server that does not tell its own


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """A time of constant load: a number of users, or a rate of arrivals.

    Attributes:
        users: users of a closed loop, who wait for their images and pause; None in an open loop.
        rate: arrivals per second of an open loop, which waits for nothing; None in a closed one.
        seconds: length, with the warm-up.
        warmup: seconds at its beginning that the figures leave out.
        think: mean pause of a user, exponentially distributed, seconds; also before the first request.
    """

    users: int | None = None
    rate: float | None = None
    seconds: float
    warmup: float
    think: float = 0.0


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A load, whatever server gets it.

    Attributes:
        mix: a mix, or the name of one around the server's default size.
        scenario: name of the scenario that the rungs are from; None for rungs of their own.
        endpoint: name in `endpoints.ENDPOINTS`.
        server: "zimage", "openai" for another server with OpenAI's endpoints, or "auto" to ask it.
        api_key: sent as a bearer token.
        patience: seconds from the moment a request is due in which a client tries again after 429 and 503.
        timeout: seconds in which an attempt must be answered.
        cases: prompts and seeds of each kind.
        checks_images: True to compare images with those that are drawn alone first.
        max_in_flight: unanswered requests of an open loop beyond which further ones are failures.
        seed: of all random choices.
        ui_port: port of Locust's web UI; None for none.
    """

    mix: Mix | str
    rungs: tuple[Rung, ...]
    scenario: str | None = None
    endpoint: str = "images"
    server: Literal["auto", "zimage", "openai"] = "auto"
    api_key: str | None = None
    patience: float = PATIENCE
    timeout: float = TIMEOUT
    cases: int = CASES
    checks_images: bool = True
    max_in_flight: int = MAX_IN_FLIGHT
    seed: int = 0
    ui_port: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def session(self, url: str, require_right: RequireRight | None = None) -> Session:
        """Return what the requests of a rung share, as it begins now."""
        return Session(url, ENDPOINTS[self.endpoint], self.headers, self.patience, self.timeout, require_right)

    def mix_for(self, info: Mapping[str, Any] | None) -> Mix:
        """Return the mix for a server with this `/v1/model_info`; None if it has none."""
        if isinstance(self.mix, Mix):
            return self.mix
        return named_mix(self.mix, DEFAULT_SIZE if info is None else Size.parse(info["default_size"]))


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that the process of Locust needs to know.

    Attributes:
        references: fingerprints of the images of each case, by its id; None to check no images.
        records: folder for a file of records per rung.
    """

    url: str
    cases: tuple[Case, ...]
    references: dict[str, tuple[Fingerprint, ...]] | None
    records: str
    options: LoadOptions


class RungTimes(msgspec.Struct, frozen=True):
    """A rung that has ended, as the process of Locust tells it.

    Attributes:
        start: time.monotonic(), which all processes of a machine share.
        seconds: how long requests were sent; less than planned if the rung was interrupted.
    """

    number: int
    start: float
    seconds: float
