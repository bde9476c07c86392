"""`/docs`: the OpenAPI document as a page, without scripts and without other hosts. Knows no endpoints."""

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary, code { font-family: ui-monospace, monospace; }
summary { cursor: pointer; padding: .4rem 0; }
summary span { font-family: system-ui, sans-serif; opacity: .7; }
details { border-bottom: 1px solid #8884; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
td, th { border: 1px solid #8884; padding: .2rem .6rem; text-align: left; vertical-align: top; }
:root { color-scheme: light dark; }
"""
LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "pattern": "pattern",
}

Node = dict[str, Any]

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """A page about every endpoint, made from the OpenAPI description."""
    return HTMLResponse(page(request.app.openapi()), headers=HEADERS)


def page(document: Node) -> str:
    """Return an OpenAPI document as HTML."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    operations = (
        _operation(path, method, operation, document)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    schemas = (_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{escape(document['info'].get('description', ''))}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"<h2>Endpoints</h2>{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</body></html>\n"
    )


def _operation(path: str, method: str, operation: Node, document: Node) -> str:
    about = operation.get("description", "")
    parts = [f"<p>{escape(about)}</p>"]
    if "security" in operation:
        parts.append("<p>Needs an API key.</p>")
    if parameters := operation.get("parameters"):
        rows = ((one["name"], escape(one["in"]), _type(one["schema"]), escape(_description(one))) for one in parameters)
        parts.append("<h4>Parameters</h4>" + _table(("Name", "In", "Type", "Meaning"), rows))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body</h4><p><code>{escape(kind)}</code>: {_type(content['schema'])}</p>")
    answers = (_answer(status, answer, document) for status, answer in sorted(operation["responses"].items()))
    parts.append("<h4>Responses</h4>" + _table(("Status", "Meaning", "Content"), answers))
    name = f"{method.upper()} {path}"
    first = about.partition("\n")[0]
    return f"<details><summary>{escape(name)} <span>{escape(first)}</span></summary>{''.join(parts)}</details>"


def _answer(status: str, answer: Node, document: Node) -> tuple[str, str, str]:
    found = _resolved(answer, document)
    kinds = (
        f"<code>{escape(kind)}</code> {_type(content.get('schema') or content.get('itemSchema', {}))}"
        for kind, content in found.get("content", {}).items()
    )
    return status, escape(found.get("description", "")), "<br>".join(kinds)


def _resolved(node: Node, document: Node) -> Node:
    """Return what a node refers to, or the node itself."""
    for part in node.get("$ref", "").removeprefix("#/").split("/") if "$ref" in node else ():
        document = document[part]
    return document if "$ref" in node else node


def _schema(name: str, schema: Node) -> str:
    required = schema.get("required", ())
    rows = (
        (
            field + (" (required)" if field in required else ""),
            _type(about),
            f"<code>{escape(repr(about['default']))}</code>" if about.get("default") is not None else "",
            escape(_description(about)),
        )
        for field, about in schema.get("properties", {}).items()
    )
    table = _table(("Field", "Type", "Default", "Meaning"), rows)
    about = f'<p id="{escape(name)}">{escape(schema.get("description", ""))}</p>'  # inside: a link to it opens it
    return f"<details><summary>{escape(name)}</summary>{about}{table}</details>"


def _description(schema: Node) -> str:
    parts = (schema, *schema.get("anyOf", ()))
    return next((part["description"] for part in parts if "description" in part), "")


def _type(schema: Node) -> str:
    """Return a type with its limits; of a schema with a name, a link to it."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if options := schema.get("anyOf"):
        return " or ".join(map(_type, options))
    if "contentSchema" in schema:
        return _type(schema["contentSchema"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    if "items" in schema:
        return f"array of {_type(schema['items'])}"
    if data := schema.get("properties", {}).get("data"):  # of a server-sent event
        return f"events with {_type(data)}"
    limits = "".join(f", {words} {escape(str(schema[key]))}" for key, words in LIMITS.items() if key in schema)
    return f"{escape(str(schema.get('type', 'any')))}{limits}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table whose cells, except for the first of each row, are HTML."""

    def lines() -> Iterator[str]:
        for first, *rest in rows:
            cells = "".join(f"<td>{cell}</td>" for cell in rest)
            yield f"<tr><td><code>{escape(first)}</code></td>{cells}</tr>"

    body = "".join(lines())
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{body}</table>" if body else ""
