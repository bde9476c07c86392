"""Hook that makes most Idempotency-Keys of schemathesis unique: a repeated key is a 422 for any other body."""

import itertools

import schemathesis
from schemathesis import Case, HookContext

_number = itertools.count()


@schemathesis.hook
def before_call(_: HookContext, case: Case, __: dict[str, object]) -> None:
    key = case.headers.get("Idempotency-Key") if case.headers else None
    if isinstance(key, str) and 0 < len(key) < 200 and next(_number) % 8:  # one in eight stays as it is
        case.headers["Idempotency-Key"] = f"{next(_number)} {key}"
