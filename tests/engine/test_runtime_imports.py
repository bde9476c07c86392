"""The runtime imports no training framework: it generates an image where none can be imported."""

import os
import subprocess
import sys
from pathlib import Path

FORBIDDEN = ("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "diffsynth", "transformers", "diffusers")

PROGRAM = """
import asyncio, importlib, sys
from pathlib import Path

FORBIDDEN = sys.argv[2].split(",")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise AssertionError(f"the runtime imports {name}")

sys.meta_path.insert(0, Refuse())
for name in FORBIDDEN:
    try:
        importlib.import_module(name)
    except AssertionError:
        continue
    sys.exit(f"{name} was not refused: this test tests nothing")

from engine.pipeline import Pipeline
from engine.options import RuntimeOptions
from engine.request import ImageRequest

pipeline = Pipeline.load(Path(sys.argv[1]), RuntimeOptions(threads=1))
image = pipeline.generate(ImageRequest("a red circle", 80, 64, seed=7, num_inference_steps=1))
assert image.pixels.shape == (64, 80, 3)
assert image.pixels.std() > 1

import engine.cli, server.cli, server.serving, server.worker.process

loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(FORBIDDEN))
assert not loaded, loaded
print("generated")
"""


def test_images_are_generated_and_served_without_a_training_framework(engines: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(engines), ",".join(FORBIDDEN)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("generated\n", "", 0)
