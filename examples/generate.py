"""Generate images with the Python API, without a server.

.venv/bin/python examples/generate.py out/engines out/circle.png "a red circle on a blue background"
"""

import argparse
from pathlib import Path

from engine import ImageGenerator
from engine.generator import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate an image with the Python API.")
    parser.add_argument("engines", type=Path, help="what build-engines --output wrote")
    parser.add_argument("output", type=Path, help="file to write: .png, .jpg or .webp")
    parser.add_argument("prompt")
    args = parser.parse_args()
    with ImageGenerator(args.engines) as generator:
        image = generator.generate(args.prompt, size=(256, 256), seed=7, on_progress=show)
    image.save(args.output)
    print(args.output)


def show(progress: Progress) -> None:
    print(f"step {progress.done} of {progress.steps}")


if __name__ == "__main__":
    main()
