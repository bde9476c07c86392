"""Names of the dialects. Imports none of them: settings are read before the worker starts."""

DIALECTS = ("automatic1111", "chat", "gradio", "query", "xinference")
NONE = "none"


def parse_dialect(name: str) -> str:
    """Return the name of a dialect, or `none`.

    Raises:
        ValueError: there is no such dialect.
    """
    if name not in (*DIALECTS, NONE):
        raise ValueError(f"must be {NONE}, or some of {', '.join(DIALECTS)}; got {name!r}")
    return name
