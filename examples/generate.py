"""Generate one image with the Python API, without a server.

.venv/bin/python examples/generate.py out/engines out/circle.png "a red circle on a blue background"
"""

import argparse
from pathlib import Path

from engine.images.encode import encode
from engine.pipeline import Pipeline
from engine.request import ImageRequest


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate one image with the Python API.")
    parser.add_argument("engines", type=Path, help="what build-engines --output wrote")
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument("prompt")
    args = parser.parse_args()
    request = ImageRequest(args.prompt, width=256, height=256, seed=7)
    with Pipeline.load(args.engines) as pipeline:
        image = pipeline.generate(request, on_step=lambda done, steps: print(f"step {done} of {steps}"))
    args.output.write_bytes(encode(image.pixels))  # pixels: [height, width, 3] uint8
    print(args.output)


if __name__ == "__main__":
    main()
