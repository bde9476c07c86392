"""Who may ask, and how often. Knows keys and addresses; not what is asked for."""

import hashlib
import math
import re
import time
from dataclasses import dataclass, field

from fastapi import Request
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from server.api import errors

BEARER = "bearer "
KEY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may make, list and delete jobs. Whoever knows a job's id, which cannot be guessed, may read it.

    Attributes:
        keys: one of them must come as `Authorization: Bearer KEY` or `x-api-key: KEY`; none lets everybody in.
        rate: requests for images per key, or without keys per address, as in "30/minute"; None for any number.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)
    rate: str | None = None

    def __post_init__(self) -> None:
        if not all(KEY.fullmatch(key) for key in self.keys):
            raise ValueError("an API key must be of visible ASCII characters: others do not come through headers")
        if self.rate is not None:
            parse(self.rate)  # raises ValueError


class Authenticator:
    """Lets requests in."""

    def __init__(self, access: Access) -> None:
        self._owners = {_digest(key) for key in access.keys}
        self._rate: RateLimitItem | None = parse(access.rate) if access.rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    @property
    def needs_key(self) -> bool:
        return bool(self._owners)

    def owner(self, request: Request) -> str | None:
        """`owner_of` the key that a request brings."""
        return self.owner_of(_key(request))

    def owner_of(self, key: str) -> str | None:
        """Hash of a key; None where none is needed.

        Raises:
            ApiError: 401.
        """
        if not self._owners:
            return None
        owner = _digest(key)
        if owner not in self._owners:
            raise errors.ApiError(
                401,
                "A valid API key is needed, as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return owner

    def count(self, request: Request, owner: str | None) -> None:
        """Counts a request for images.

        Raises:
            ApiError: 429, with when to come back.
        """
        who = owner or (request.client.host if request.client else "")
        if self._rate is None or self._limiter.hit(self._rate, who):
            return
        reset = self._limiter.get_window_stats(self._rate, who).reset_time
        seconds = max(1, math.ceil(reset - time.time()))
        raise errors.ApiError(
            429,
            f"More than {self._rate.amount} requests in {self._rate.get_expiry()} s; try again in {seconds} s.",
            code="rate_limit_exceeded",
            headers={"retry-after": str(seconds)},
        )


def _key(request: Request) -> str:
    given = request.headers.get("authorization", "")
    if given.lower().startswith(BEARER):
        return given[len(BEARER) :].strip()
    return request.headers.get("x-api-key", "")


def _digest(key: str) -> str:
    """What is compared and kept instead of the key; comparing digests tells an attacker nothing by its time."""
    return hashlib.sha256(key.encode()).hexdigest()
