"""`/docs`: the whole OpenAPI document, without scripts and without other hosts."""

import re
from html.parser import HTMLParser

import httpx

from server.api.documentation import page


class Reader(HTMLParser):
    """Collects tags, addresses, ids and texts; fails at tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("href", "src"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.add(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


def test_page_has_every_endpoint_and_field_of_the_document(http: httpx.Client) -> None:
    document, reader = http.get("/openapi.json").json(), read(http.get("/docs").text)
    text = " ".join(reader.texts)
    assert "X-Ignored-Parameters" in document["info"]["description"] in text
    for path, methods in document["paths"].items():
        assert all(f"{method.upper()} {path}" in text for method in methods)
    for name, schema in document["components"]["schemas"].items():
        assert name in reader.ids
        assert all(field in text for field in schema.get("properties", {}))
    assert "at least -1, at most 18446744073709551615" in text  # of seeds


def test_page_needs_nothing_but_itself(http: httpx.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    reader = read(answer.text)
    assert not reader.tags & {"script", "link", "img", "iframe"}
    assert all(re.fullmatch(r"#\w+|openapi\.json", address) for address in reader.addresses)
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= reader.ids


def test_texts_of_the_document_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    operation = {
        "description": evil,
        "parameters": [{"name": evil, "in": evil, "schema": {"type": evil}, "description": evil}],
        "responses": {"200": {"description": evil, "content": {evil: {"schema": {"$ref": f"#/a/{evil}"}}}}},
    }
    field = {"type": evil, "default": evil, "description": evil, "pattern": evil}
    schemas = {evil: {"description": evil, "properties": {evil: field, "b": {"enum": [evil]}}}}
    document = {
        "info": {"title": evil, "version": evil, "description": evil},
        "paths": {evil: {"get": operation}},
        "components": {"schemas": schemas},
    }
    assert "script" not in read(page(document)).tags
