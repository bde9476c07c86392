"""A load to run, as the parent process hands it to the process of Locust: one line of JSON."""

import msgspec

from benchmarks.load.requests.cases import Case
from benchmarks.load.requests.fingerprints import Fingerprint

MAX_IN_FLIGHT = 1000  # requests of an open loop
PATIENCE, TIMEOUT = 120.0, 60.0  # seconds


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

    @property
    def name(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.users} user{'s' * (self.users != 1)}"


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that the process of Locust needs to know.

    Attributes:
        endpoint: name in `targets.ENDPOINTS`.
        references: fingerprints of the images of each case, by its id; None to check no images.
        patience: seconds from the moment a request is due in which a client tries again after 429 and 503.
        timeout: seconds in which an attempt must be answered.
        records: folder for a file of records per rung.
        ui_port: port of Locust's web UI; None for none.
    """

    url: str
    endpoint: str
    headers: dict[str, str]
    cases: tuple[Case, ...]
    references: dict[str, tuple[Fingerprint, ...]] | None
    rungs: tuple[Rung, ...]
    records: str
    patience: float = PATIENCE
    timeout: float = TIMEOUT
    max_in_flight: int = MAX_IN_FLIGHT
    seed: int = 0
    ui_port: int | None = None


class RungTimes(msgspec.Struct, frozen=True):
    """A rung that has ended, as the process of Locust tells it.

    Attributes:
        start: time.monotonic(), which all processes of a machine share.
        seconds: how long requests were sent; less than planned if the rung was interrupted.
    """

    number: int
    start: float
    seconds: float


def authorization(api_key: str | None) -> dict[str, str]:
    """Return the headers that send an API key; none without a key."""
    return {"authorization": f"Bearer {api_key}"} if api_key else {}
