"""Train z-image-nano on the scenes of `nano.scenes`: autoencoder, text encoder, transformer, and a LoRA.

    python -m nano.train --work out/nano-work --output out/z-image-nano

If it is interrupted, the same command continues from the last saved step.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.checkpoint.rotary_layout import is_rotated, neighbouring
from nano.autoencoder import train_autoencoder
from nano.checkpoint import write_checkpoint
from nano.flow import Painter, train_painter, train_reader
from nano.images import encode_images
from nano.layout import NANO, CheckpointSizes
from nano.lora import train_lora, write_lora
from nano.tokenizer import train_tokenizer
from nano.training import Stage


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes of the models, training stages, and number of images.

    Attributes:
        crops, autoencoder: stages of the autoencoder, on crops and on whole images.
        reader: stage of the text encoder alone.
        painter: stage of the text encoder and the transformer.
        outlines: stage of the LoRA.
        images: training images of the painter stage.
        outlined_images: training images of the LoRA.
    """

    sizes: CheckpointSizes
    crops: Stage
    autoencoder: Stage
    reader: Stage
    painter: Stage
    outlines: Stage
    images: int
    outlined_images: int


RECIPE = Recipe(
    sizes=NANO,
    crops=Stage("crops", steps=1800, learning_rate=1.5e-3, batch=4),
    autoencoder=Stage("autoencoder", steps=200, learning_rate=5e-4, batch=16),
    reader=Stage("reader", steps=600, learning_rate=2e-3, batch=64),
    painter=Stage("painter", steps=10000, learning_rate=4e-3, batch=64, decay=0.6),
    outlines=Stage("outlines", steps=300, learning_rate=2e-3, batch=64),
    images=16000,
    outlined_images=2000,
)


def train_nano(recipe: Recipe, work: Path, output: Path, device: torch.device, *, compiled: bool = False) -> None:
    """Run every stage that `work` does not hold yet, and write the checkpoint and its LoRA.

    Args:
        work: folder with the state of the stages.
        output: new folder for the checkpoint; the LoRA goes to the new folder `output`-lora.
        compiled: compile the models of the longest stage; results differ by rounding only.

    Raises:
        FileExistsError: one of the two output folders exists.
        ValueError: `work` has the state of another recipe.
    """
    lora = output.with_name(f"{output.name}-lora")
    for folder in (output, lora):
        if folder.exists():
            raise FileExistsError(f"{folder} exists; choose another --output")
    _claim(work, recipe)
    vae = train_autoencoder(recipe.crops, recipe.autoencoder, recipe.sizes, work, device)
    recipe.reader.random(-1)
    painter = Painter(recipe.sizes, train_tokenizer()).to(device)
    train_reader(recipe.reader, painter, work, device)
    latents = encode_images(vae, recipe.images, "filled", recipe.sizes, work / "filled.pt", device)
    train_painter(recipe.painter, painter, latents, work, device, compiled)
    latents = encode_images(vae, recipe.outlined_images, "outlined", recipe.sizes, work / "outlined.pt", device)
    pairs = train_lora(recipe.outlines, painter, latents, work, device)
    head_dim = sum(recipe.sizes.axes_dims)
    weights = {
        "transformer": official_order(painter.transformer.state_dict(), head_dim),
        "text_encoder": {f"model.{name}": t for name, t in painter.language_model.model.state_dict().items()},
        "vae": vae.state_dict(),
    }
    write_checkpoint(output, recipe.sizes, weights)
    ups = official_order({name: up for name, (_, up) in pairs.items()}, head_dim)
    write_lora({name: (down, ups[name]) for name, (down, _) in pairs.items()}, lora)


def official_order(tensors: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Return tensors of a transformer that was trained half-split, as the graphs want it, with neighbouring pairs."""
    return {name: neighbouring(t, head_dim) if is_rotated(name) else t for name, t in tensors.items()}


def _claim(work: Path, recipe: Recipe) -> None:
    """Write the recipe into a new work folder; an existing folder must have the same recipe."""
    work.mkdir(parents=True, exist_ok=True)
    file, content = work / "recipe.json", json.dumps(asdict(recipe), indent=2)
    if file.exists() and file.read_text() != content:
        raise ValueError(f"{work} belongs to another recipe ({file}); choose another --work")
    file.write_text(content)


def main() -> None:
    parser = argparse.ArgumentParser("nano.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state; pass it again to continue")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the checkpoint")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device; default: %(default)s"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the models: minutes to start, then twice as fast; needs g++"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of all steps and images, to try the recipe; default: %(default)s",
    )
    args = parser.parse_args()
    recipe, device = shortened(RECIPE, args.share), torch.device(args.device)
    train_nano(recipe, args.work, args.output, device, compiled=args.compile)
    print(args.output)


def shortened(recipe: Recipe, share: float) -> Recipe:
    """Return the recipe with a share of its steps and images."""
    changes: dict[str, Any] = {}
    for name, value in ((field.name, getattr(recipe, field.name)) for field in fields(recipe)):
        if isinstance(value, Stage):
            changes[name] = replace(value, steps=max(1, round(share * value.steps)))
        elif isinstance(value, int):
            changes[name] = max(1, round(share * value))
    return replace(recipe, **changes)


if __name__ == "__main__":
    main()
