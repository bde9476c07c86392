"""API keys and rate limits. Knows keys and addresses; not what a request asks for."""

import base64
import hashlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request

from server.api import errors
from server.api.api_key import check_api_key
from server.api.client import client_of
from server.jobs.admission.rate import Rate

BEARER, BASIC = "bearer ", "basic "


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Permissions to create, list and delete jobs. A job can be read by its id alone, which cannot be guessed.

    Attributes:
        keys: API keys; a request must send one of them as `Authorization: Bearer KEY`, as `x-api-key: KEY`, or as
            the password of HTTP's Basic authentication. Without keys, every request is allowed.
        rate: maximum rate of image requests per client (see `client_of`), such as "30/minute"; None for no limit.
        shared_history: True to list the jobs of all clients to each, without keys; with keys, each lists its own.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)
    rate: str | None = None
    shared_history: bool = False

    def __post_init__(self) -> None:
        for key in self.keys:
            check_api_key(key)
        if self.rate is not None:
            Rate.parse(self.rate)  # raises ValueError


class Authenticator:
    """Checks the API key and the rate of requests.

    Args:
        hit: counts a request of a client, and returns the seconds until its rate allows one; see `JobService.hit`.
        on_refused: called with the code of each refusal for the rate.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        hit: Callable[[str, Rate], Awaitable[float]],
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._hit, self._on_refused = hit, on_refused
        self._owners = {_digest(key) for key in policy.keys}
        self._rate = None if policy.rate is None else Rate.parse(policy.rate)
        self._shares_history = policy.shared_history

    @property
    def needs_key(self) -> bool:
        """True if requests must send an API key."""
        return bool(self._owners)

    @property
    def lists_history(self) -> bool:
        """True if a client may list jobs: its own with keys, those of all clients without."""
        return self.history != "browser"

    @property
    def history(self) -> Literal["shared", "browser", "key"]:
        """Jobs that a client may list: those of all clients, none but what its browser remembers, or its key's."""
        if self.needs_key:
            return "key"
        return "shared" if self._shares_history else "browser"

    def owner(self, request: Request) -> str | None:
        """Return the owner of a request's jobs; see `owner_of`."""
        return self.owner_of(_key(request))

    def owner_of(self, key: str) -> str | None:
        """Return the hash of a key, or None if no key is needed.

        Raises:
            ApiError: 401, the key is not valid.
        """
        if not self._owners:
            return None
        owner = _digest(key)
        if owner not in self._owners:
            raise errors.ApiError(
                401,
                "A valid API key is required; send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return owner

    async def count(self, request: Request, owner: str | None) -> None:
        """Count a request for images.

        Raises:
            ApiError: 429, the rate is exceeded; retry-after is in seconds.
            StoreUnavailable: the servers count together, and what they share cannot be reached.
        """
        wait = 0.0 if self._rate is None else await self._hit(client_of(request, owner), self._rate)
        if wait == 0.0:
            return
        seconds = math.ceil(wait)
        refusal = errors.ApiError(
            429,
            f"The rate of {self._rate} is exceeded; try again in {seconds} s.",
            code="rate_limit_exceeded",
            headers={"retry-after": str(seconds)},
        )
        self._on_refused(refusal.code)
        raise refusal


def _key(request: Request) -> str:
    given = request.headers.get("authorization", "")
    if given.lower().startswith(BEARER):
        return given[len(BEARER) :].strip()
    if given.lower().startswith(BASIC):
        return _password(given[len(BASIC) :])
    return request.headers.get("x-api-key", "")


def _password(credentials: str) -> str:
    """Return the password in credentials of Basic authentication; empty if they are malformed."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _digest(key: str) -> str:
    """Return what is compared and stored instead of the key. Digests can be compared without a timing attack."""
    return hashlib.sha256(key.encode()).hexdigest()
