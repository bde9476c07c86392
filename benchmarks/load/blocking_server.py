"""A server as people write their first one, to compare zimage-serve with: one FastAPI handler that blocks.

python -m benchmarks.load.blocking_server --engines DIR [--port PORT]

It draws with the same plans as zimage-serve, but its handler holds the event loop while it draws. So requests wait in
sockets and in the loop, none is refused, and images are drawn for clients that have gone.
"""

import argparse
import base64
import io
import socket
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Body, FastAPI
from PIL import Image

from engine.generator import ImageGenerator
from engine.options import SLOTS, RuntimeOptions
from engine.size import Size


def create_app(generator: ImageGenerator) -> FastAPI:
    """Return the application around one pipeline."""
    app = FastAPI()

    @app.post("/v1/images/generations")
    async def generate(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008  # as FastAPI wants it
        found = generator.generate(body["prompt"], size=Size.parse(body["size"]), seed=body["seed"])
        file = io.BytesIO()
        Image.fromarray(found.pixels).save(file, "PNG")
        return {"created": int(time.time()), "data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}

    return app


def main() -> None:
    parser = argparse.ArgumentParser("blocking_server", description=__doc__)
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    with (
        ImageGenerator(args.engines, RuntimeOptions(threads=args.threads, slots=SLOTS)) as generator,
        socket.create_server(("127.0.0.1", args.port), backlog=2048) as sock,
    ):
        generator.generate("a red circle", size=generator.manifest.default_size)  # as zimage-serve warms up
        print(f"blocking server: ready on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(create_app(generator), log_level="error")).run(sockets=[sock])


if __name__ == "__main__":
    main()
