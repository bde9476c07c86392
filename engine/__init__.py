"""The runtime: generates images from a plan directory and prompts, without PyTorch.

    from engine import ImageGenerator

Reading order: `pipeline` (encode_prompt, denoise, decode), `plan.manifest` (the contents of a plan directory),
`backends.base` and `backends.memory` (the interfaces to what runs a graph), `scheduler.loop` (many images at once),
`generator` (the Python API).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.generator import ImageGenerator

__all__ = ["ImageGenerator"]


def __getattr__(name: str) -> Any:
    """Import `ImageGenerator` when it is first used: the server's process imports this package without numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engine import generator

    return getattr(generator, name)
