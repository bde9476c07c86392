"""The routers of the dialects, by name. Knows no endpoints."""

from collections.abc import Collection

from fastapi import APIRouter

from server.api.dialects import automatic1111, chat, gradio, query, xinference

ROUTERS = {
    "automatic1111": automatic1111.router,
    "chat": chat.router,
    "gradio": gradio.router,
    "query": query.router,
    "xinference": xinference.router,
}
NAMING = ("automatic1111", "chat", "gradio")  # those whose jobs have the dialect's name; others pass theirs on


def routers(names: Collection[str]) -> list[APIRouter]:
    """Return the routers of some dialects. Other endpoints come after them, since some have the same paths."""
    return [router for name, router in ROUTERS.items() if name in names]


def apis(names: Collection[str]) -> list[str]:
    """Return the names of the APIs of some dialects, as jobs and metrics have them."""
    return [name for name in NAMING if name in names]
