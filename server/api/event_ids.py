"""Ids of events: which images of a job a client has, so that another stream goes on where one broke off.

Every server understands them, since they name nothing but indices. Knows neither events nor connections.
"""

import re
from collections.abc import Collection
from typing import Annotated

from fastapi import Header, Query

NO_IMAGES = "none"
IDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{1,3})*")
MAX_ID = 64  # characters

ABOUT = "id of the last event that the client has; the images that it has are not sent again"
LastEventId = Annotated[str | None, Header(description=ABOUT)]
LastEventIdQuery = Annotated[str | None, Query(description=ABOUT)]


def event_id(images: Collection[int]) -> str:
    """Return the id of an event after which a client has the images with these indices."""
    return ",".join(map(str, sorted(images))) or NO_IMAGES


def images_of(last_event_id: str | None) -> frozenset[int]:
    """Return the indices of the images that a client has; none for an id that no server has sent."""
    if last_event_id is None or len(last_event_id) > MAX_ID or not IDS.fullmatch(last_event_id):
        return frozenset()
    return frozenset(map(int, last_event_id.split(",")))
