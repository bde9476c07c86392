"""Keeps schemathesis from using an Idempotency-Key twice, which is a 422 whatever the body, but now and then."""

import itertools

import schemathesis
from schemathesis import Case, HookContext

_number = itertools.count()


@schemathesis.hook
def before_call(_: HookContext, case: Case, __: dict[str, object]) -> None:
    key = case.headers.get("Idempotency-Key") if case.headers else None
    if isinstance(key, str) and 0 < len(key) < 200 and next(_number) % 8:  # some of them do
        case.headers["Idempotency-Key"] = f"{next(_number)} {key}"
