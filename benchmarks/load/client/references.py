"""Images of a load's cases, drawn alone before the load, and what a server says about itself. Knows no Locust."""

import http.client
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from benchmarks.load.client.cases import Case
from benchmarks.load.client.connection import Connection
from benchmarks.load.client.fingerprints import Fingerprint, WrongImage
from benchmarks.load.client.request import Request, Session

ANSWER_SECONDS = 30.0  # in which a server must tell what it is


def draw_references(session: Session, cases: Sequence[Case]) -> dict[str, tuple[Fingerprint, ...]]:
    """Draw each case alone; return the fingerprints of its images by its id.

    Raises:
        RuntimeError: the server does not draw one of them.
    """
    found: dict[str, tuple[Fingerprint, ...]] = {}

    def keep(case: Case, images: Sequence[bytes]) -> None:
        fingerprints = tuple(Fingerprint.of(data) for data in images)
        sizes = {(each.width, each.height) for each in fingerprints}
        if len(images) != case.kind.images or sizes != {case.kind.size}:
            asked = f"{case.kind.images} of {case.kind.size}"
            raise WrongImage(f"it answers {len(images)} images of {sorted(sizes)}, asked for {asked}")
        found[case.id] = fingerprints

    with Connection(session.url) as connection:
        for case in cases:
            record = Request(replace(session, require_right=keep), case).run(connection)
            if record.outcome != "ok":
                what = f"{case.kind.name} alone ({record.outcome}): {record.error}"
                raise RuntimeError(f"{session.url} does not draw {what}")
    return found


def model_info(url: str, headers: Mapping[str, str]) -> dict[str, Any] | None:
    """Return `/v1/model_info` of a zimage-serve; None for another server.

    Raises:
        RuntimeError: nothing answers there, or not in HTTP.
    """
    with Connection(url) as connection:
        try:
            reply = connection.send("GET", "/v1/model_info", None, headers, time.monotonic() + ANSWER_SECONDS)
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"no server answers at {url}: {error or type(error).__name__}") from error
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if reply.status != 200 or not isinstance(found, dict) or "plan_id" not in found:
        return None
    return found if isinstance(found.get("default_size"), str) else None
