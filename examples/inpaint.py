"""Draw half of an image anew with the Python API, then all of it with some strength. No server is needed.

.venv/bin/python examples/inpaint.py out/engines out
"""

import argparse
from pathlib import Path

import numpy as np

from engine import ImageGenerator

PROMPT = "a red circle to the left of a yellow square on a blue background"
OTHER = "a green star to the left of a yellow square on a blue background"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw half of an image anew, then all of it with some strength.")
    parser.add_argument("engines", type=Path, help="what build-engines --output wrote")
    parser.add_argument("output", type=Path, help="folder to write PNG files to")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with ImageGenerator(args.engines) as generator:
        original = generator.generate(PROMPT, size=(256, 192), seed=7)
        mask = np.zeros((192, 256), bool)  # True, or white, is drawn anew
        mask[:, :128] = True
        inpainted = generator.generate(OTHER, image=original.pixels, mask=mask, seed=7)
        varied = generator.generate(OTHER, image=original.pixels, strength=0.8, seed=7)
    for name, image in (("original", original), ("inpainted", inpainted), ("varied", varied)):
        image.save(args.output / f"{name}.png")
        print(args.output / f"{name}.png")


if __name__ == "__main__":
    main()
