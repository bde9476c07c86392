"""Write the tables of docs/serving.md that follow from the code: endpoints, request fields, settings.

    .venv/bin/python scripts/reference.py          rewrites the page
    .venv/bin/python scripts/reference.py --check  exits with 1 if the page is out of date

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from pydantic import BaseModel

from server.api import edits, model_info, openai, openapi, tasks
from server.api.access import AccessPolicy
from server.api.edit_schemas import EditRequest
from server.api.openai_schemas import ImagesRequest
from server.api.task_schemas import GenerateRequest
from server.app import probes
from server.settings_sources import SERVE, Command
from server.worker_cli import WORK

PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving.md"
NONE = ""  # what an empty cell holds


def main() -> None:
    parser = argparse.ArgumentParser("scripts/reference.py", description="Write the generated tables of serving.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    args = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = rewritten(before)
    if args.check and before != after:
        sys.exit(f"{PAGE.name} is out of date; run: .venv/bin/python scripts/reference.py")
    if not args.check:
        PAGE.write_text(after, encoding="utf-8")


def rewritten(page: str) -> str:
    """Return the page with every generated table as the code has it now."""
    tables = {
        "endpoints": table(("Method", "Path", "Key", "What it does"), endpoints()),
        "images-fields": table(("Field", "Type", "Default", "Notes"), fields(ImagesRequest)),
        "tasks-fields": table(("Field", "Type", "Default", "Notes"), fields(GenerateRequest)),
        "settings": table(("Flag", "Default", "What it does"), settings(SERVE)),
        "worker-settings": table(("Flag", "Default", "What it does"), settings(WORK)),
    }

    def replace(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{tables[match[1]]}<!-- end -->"

    return re.sub(r"<!-- table: ([a-z-]+) -->\n.*?<!-- end -->", replace, page, flags=re.DOTALL)


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a Markdown table, without a last column that would be empty."""
    body = list(rows)
    columns = len(head) if any(row[-1] for row in body) else len(head) - 1
    lines = [row[:columns] for row in (head, ["---"] * len(head), *body)]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def endpoints() -> Iterator[Sequence[str]]:
    """Method, path, whether a key is needed, and the first line of the documentation of each endpoint."""
    app, routers = FastAPI(), (openai.router, edits.router, model_info.router, tasks.router, probes)
    for router in routers:
        app.include_router(router)
    openapi.install(app, AccessPolicy(keys=("any",)), ImagesRequest, EditRequest, GenerateRequest)
    described: dict[str, Any] = app.openapi()["paths"]
    routes: dict[tuple[str, str], tuple[str, ...]] = {}
    for route in (route for router in routers for route in router.routes):
        if isinstance(route, APIRoute):
            methods = sorted(route.methods)
            path = route.path.replace(":path", "")
            key = any("security" in described[path][method.lower()] for method in methods)
            known = routes.get((path, first_line(route.endpoint)), ("", ""))[0]
            joined = ", ".join(sorted({*filter(None, known.split(", ")), *methods}))
            routes[path, first_line(route.endpoint)] = (joined, "yes" if key else NONE)
        elif isinstance(route, APIWebSocketRoute):
            routes[route.path, first_line(route.endpoint)] = ("WebSocket", NONE)
    for (path, about), (methods_of, key_of) in routes.items():
        yield f"`{methods_of}`", f"`{path}`", key_of, about
    yield "`GET`", "`/openapi.json`", NONE, "The OpenAPI description of all of this."
    yield "`GET`", "`/docs`", NONE, "The same as a page."
    yield "`GET`", "`/`", NONE, "The page, unless the server was started with `--no-page`."


def first_line(endpoint: Any) -> str:
    """The first line of a function's documentation, or else its name."""
    return (inspect.getdoc(endpoint) or f"{endpoint.__name__.replace('_', ' ').capitalize()}.").split("\n")[0]


def fields(body: type[BaseModel]) -> Iterator[Sequence[str]]:
    """Name, type with limits, default and description of each field of a request's body."""
    schema = body.model_json_schema()
    for name, field in schema["properties"].items():
        required = name in schema.get("required", ())
        options = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
        default = field.get("default")
        shown = "required" if required else NONE if default in (None, "") else f"`{default}`".replace("True", "true")
        about = field.get("description") or options[0].get("description", NONE)
        yield f"`{name}`", kind(options[0]), shown.replace("False", "false"), about


def kind(schema: dict[str, Any]) -> str:
    """A JSON type with its limits, such as `integer 0..100`."""
    if "anyOf" in schema:
        return " or ".join(map(kind, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    name = " or ".join(schema["type"]) if isinstance(schema["type"], list) else schema["type"]
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum")
    if low is not None and high is not None:
        first = f"above {low:g}, at most" if "exclusiveMinimum" in schema else f"{low:g} to"
        return f"{name}, {first} {high if isinstance(high, int) else f'{high:g}'}"
    if "maxLength" in schema:
        return f"{name}, at most {schema['maxLength']:,} characters"
    return str(name)


def settings(command: Command) -> Iterator[Sequence[str]]:
    """Flag, default and description of each setting of a command."""
    for name, field in command.fields.items():
        flag = f"--{name.replace('_', '-')}"
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        if field.annotation is bool:
            shown = f"`{flag}`, `--no-{flag[2:]}`"
        else:
            shown = f"`{flag} {'|'.join(choices) or field.title or name.rpartition('_')[2].upper()}`"
        default = field.default
        if field.is_required():
            value = "required"
        elif isinstance(default, bool):
            value = "on" if default else "off"
        elif default is None or default == ():
            value = NONE
        elif isinstance(default, tuple):
            value = f"`{' '.join(default)}`"
        else:
            value = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        yield shown, value, field.description or NONE


if __name__ == "__main__":
    main()
