"""The names by which clients know the model. Knows names; not the plans."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from engine.plan.guide import Guide
from server.api import errors


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model of a server.

    Attributes:
        names: its names, as `/v1/models` lists them; answers tell the first one.
        is_strict: True to refuse requests for other models; False to answer them too.
        guide: what to expect of it.
    """

    names: tuple[str, ...]
    is_strict: bool = False
    guide: Guide = field(default_factory=Guide)

    @property
    def name(self) -> str:
        """The name in answers."""
        return self.names[0]

    def check(self, asked: str | None) -> None:
        """Raise ApiError (404) if a request for this model must be refused. None: the request names no model."""
        if self.is_strict and asked is not None and asked not in self.names:
            raise errors.model_not_found(asked, self.name)

    def is_other(self, asked: str | None) -> bool:
        """True if a request names another model."""
        return asked is not None and asked not in self.names


async def _served_model(connection: HTTPConnection) -> ServedModel:
    model: ServedModel = connection.app.state.model
    return model


Model = Annotated[ServedModel, Depends(_served_model)]
