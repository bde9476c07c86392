"""Bodies with many fields that are accepted without an effect. Knows the rule, not the fields."""

from typing import Any, ClassVar, Self

from pydantic import ConfigDict, model_validator

from server.api import errors
from server.api.fields import RequestBody


class ExtraFields(RequestBody):
    """A body whose other fields, of any type, are accepted and reported if they are known, and refused by name if not.

    Attributes:
        without_effect: known fields, with the values that ask for nothing and are not reported.
    """

    model_config = ConfigDict(extra="allow")

    without_effect: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="after")
    def _are_known(self) -> Self:
        for name in self.model_extra or ():
            if name not in self.without_effect:
                raise errors.unknown_parameter(name)
        return self

    def ignored(self) -> tuple[str, ...]:
        extra = (self.model_extra or {}).items()
        asking = [name for name, value in extra if value is not None and value not in self.without_effect[name]]
        return (*super().ignored(), *asking)
