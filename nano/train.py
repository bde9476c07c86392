"""Trains z-image-nano from nothing but `nano.scenes`: autoencoder, text encoder, transformer, and a LoRA.

    python -m nano.train --work out/nano-work --output out/z-image-nano

Stopped at any time, the same command goes on where it was. It does not know how pictures are judged.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nano.autoencoder import train_autoencoder
from nano.checkpoint import write_checkpoint
from nano.flow import Painter, train_painter, train_reader
from nano.layout import NANO, CheckpointSizes
from nano.lora import train_lora, write_lora
from nano.pictures import encode_pictures
from nano.tokenizer import train_tokenizer
from nano.training import Stage


@dataclass(frozen=True, slots=True)
class Recipe:
    """The sizes of the models, the stages, and how many pictures the transformer and its LoRA see."""

    sizes: CheckpointSizes
    autoencoder: Stage
    reader: Stage
    painter: Stage
    outlines: Stage
    pictures: int
    outlined_pictures: int


RECIPE = Recipe(
    sizes=NANO,
    autoencoder=Stage("autoencoder", steps=2400, learning_rate=1e-3, batch=4),
    reader=Stage("reader", steps=600, learning_rate=2e-3, batch=64),
    painter=Stage("painter", steps=4000, learning_rate=2e-3, batch=64),
    outlines=Stage("outlines", steps=300, learning_rate=2e-3, batch=64),
    pictures=16000,
    outlined_pictures=2000,
)


def train_nano(recipe: Recipe, work: Path, output: Path, device: torch.device) -> None:
    """Runs every stage that `work` does not hold yet; writes the checkpoint to `output`, its LoRA to `output`-lora.

    Raises:
        FileExistsError: `output` is neither new nor empty.
        ValueError: `work` belongs to another recipe.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} must be new or empty")
    work.mkdir(parents=True, exist_ok=True)
    vae = train_autoencoder(recipe.autoencoder, recipe.sizes, work, device)
    recipe.reader.random(-1)
    painter = Painter(recipe.sizes, train_tokenizer()).to(device)
    train_reader(recipe.reader, painter, work, device)
    latents = encode_pictures(vae, recipe.pictures, "filled", recipe.sizes, work / "filled.pt", device)
    train_painter(recipe.painter, painter, latents, work, device)
    weights = {
        "transformer": painter.transformer.state_dict(),
        "text_encoder": {f"model.{name}": t for name, t in painter.language_model.model.state_dict().items()},
        "vae": vae.state_dict(),
    }
    write_checkpoint(output, recipe.sizes, weights)
    outlined = encode_pictures(vae, recipe.outlined_pictures, "outlined", recipe.sizes, work / "outlined.pt", device)
    write_lora(train_lora(recipe.outlines, painter, outlined, work, device), output.with_name(f"{output.name}-lora"))


def main() -> None:
    parser = argparse.ArgumentParser("nano.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="state of the stages; give it again to go on")
    parser.add_argument("--output", type=Path, required=True, help="where the checkpoint goes; new or empty")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="%(default)s")
    parser.add_argument("--steps", type=float, default=1.0, help="share of every stage's steps, to try the recipe out")
    args = parser.parse_args()
    train_nano(shortened(RECIPE, args.steps), args.work, args.output, torch.device(args.device))
    print(args.output)


def shortened(recipe: Recipe, share: float) -> Recipe:
    """The same recipe with a share of its steps and pictures."""
    stages = {
        name: replace(stage, steps=max(1, round(share * stage.steps)))
        for name in ("autoencoder", "reader", "painter", "outlines")
        if isinstance(stage := getattr(recipe, name), Stage)
    }
    pictures = {name: max(9, round(share * getattr(recipe, name))) for name in ("pictures", "outlined_pictures")}
    return replace(recipe, **stages, **pictures)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
