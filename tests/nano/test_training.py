"""The recipe in a few steps: losses fall, an interrupted stage resumes, and the written checkpoint loads."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from diffusers import ZImagePipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from export.checkpoint.files import open_checkpoint
from export.compile.parity import Reference, relative_l2, sample_inputs
from nano.flow import Painter
from nano.layout import CheckpointSizes
from nano.lora import RANK
from nano.tokenizer import train_tokenizer
from nano.train import RECIPE, Recipe, shortened, train_nano
from nano.training import Stage, optimizers, train

TINY = CheckpointSizes(
    dim=64,
    n_heads=2,
    n_layers=1,
    n_refiner_layers=1,
    axes_dims=(8, 12, 12),
    cap_feat_dim=64,
    text_layers=2,
    text_heads=2,
    text_kv_heads=1,
    text_intermediate_size=128,
    block_out_channels=(8, 16, 16, 16),
    norm_num_groups=2,
    layers_per_block=1,
)
CPU = torch.device("cpu")


def line_stage(steps: int) -> Stage:
    return Stage("line", steps=steps, learning_rate=0.1, batch=1, save_every=5)


def fit_a_line(stage: Stage, folder: Path, stop_at: int | None = None) -> tuple[nn.Sequential, list[float]]:
    stage.random(-1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 1))

    def loss_of(rng: Random, step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 1, 3, 3)
        return (model(x) - rng.uniform(1, 3) * x.mean((2, 3))).square().mean()

    return model, train(stage, {"line": model}, optimizers(model, stage.learning_rate, ()), loss_of, folder)


def test_interrupted_stage_resumes_with_the_same_result(tmp_path: Path) -> None:
    whole, losses = fit_a_line(line_stage(20), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_a_line(line_stage(20), tmp_path / "stopped", stop_at=13)
    resumed, again = fit_a_line(line_stage(20), tmp_path / "stopped")
    assert again == losses
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    finished, _ = fit_a_line(line_stage(20), tmp_path / "stopped", stop_at=0)  # nothing left to do
    assert all(map(torch.equal, finished.parameters(), whole.parameters()))


def test_work_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(RECIPE)))
    with pytest.raises(ValueError, match="belongs to another recipe"):
        train_nano(shortened(RECIPE, 0.5), tmp_path, tmp_path / "nano", CPU)


def test_nonfinite_loss_stops_the_stage(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="line: loss nan at step 0"):
        train(line_stage(3), {}, [], lambda *_: model.weight.sum() * float("nan"), tmp_path)


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    stage = Stage("rates", steps=1000, learning_rate=1.0, batch=1)
    rates = [stage.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert set(rates[99:700]) == {1.0}
    assert all(after < before for before, after in pairwise(rates[701:]))
    assert rates[-1] < 0.01


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole recipe over tiny models."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = Recipe(
        sizes=TINY,
        crops=replace(RECIPE.crops, steps=30, batch=2),
        autoencoder=replace(RECIPE.autoencoder, steps=10, batch=1),
        reader=replace(RECIPE.reader, steps=30, batch=16),
        painter=replace(RECIPE.painter, steps=40, batch=8),
        outlines=replace(RECIPE.outlines, steps=4, batch=8),
        images=60,
        outlined_images=20,
    )
    train_nano(recipe, folder / "work", folder / "nano", CPU)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "share"), [("crops", 0.9), ("reader", 0.7), ("painter", 0.9)])
def test_losses_fall(trained: Path, stage: str, share: float) -> None:
    losses = json.loads((trained / "work" / f"{stage}.json").read_text())["losses"]
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    print(stage, first, last)
    assert last < share * first


@pytest.mark.slow
def test_diffsynth_computes_from_the_written_checkpoint_what_was_trained(trained: Path) -> None:
    painter = Painter(TINY, train_tokenizer())
    painter.load_state_dict(torch.load(trained / "work" / "painter.pt")["modules"]["painter"])
    checkpoint = open_checkpoint(str(trained / "nano"))
    inputs = sample_inputs("denoiser", checkpoint.transformer.config, height=16, width=24, tokens=40, batch=1)
    _, denoise = painter.graphs()
    with torch.no_grad():
        trained_step = denoise(*(torch.tensor(array) for array in inputs.values())).numpy()
    assert (
        relative_l2(trained_step - inputs["latents"], Reference(checkpoint).denoiser(inputs) - inputs["latents"]) < 1e-4
    )


@pytest.mark.slow
def test_written_checkpoint_loads_in_diffusers_and_its_lora_fits(trained: Path) -> None:
    pipeline = ZImagePipeline.from_pretrained(trained / "nano")
    for component in ("transformer", "vae", "text_encoder"):
        assert all(torch.isfinite(tensor).all() for tensor in getattr(pipeline, component).state_dict().values())
    shapes = {name: tensor.shape for name, tensor in pipeline.transformer.named_parameters()}
    diffsynth = load_file(trained / "nano-lora" / "outlines.safetensors")
    kohya = load_file(trained / "nano-lora" / "outlines-kohya.safetensors")
    layers = {name.split(".lora_")[0] for name in diffsynth}
    assert len(layers) == 14  # seven matrices in each of the two blocks
    for layer in layers:
        down, up = (diffsynth[f"{layer}.lora_{side}.default.weight"] for side in "AB")
        assert (up @ down).shape == shapes[f"{layer}.weight"]
        flat = f"lora_unet_{layer.replace('.', '_')}"
        assert torch.equal(kohya[f"{flat}.lora_down.weight"], down)
        assert torch.equal(kohya[f"{flat}.lora_up.weight"], up)
        assert kohya[f"{flat}.alpha"] == RANK
    assert any(tensor.abs().sum() > 0 for name, tensor in diffsynth.items() if "lora_B" in name)


def test_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "nano-lora").mkdir()
    with pytest.raises(FileExistsError, match="nano-lora exists"):
        train_nano(RECIPE, tmp_path / "work", tmp_path / "nano", CPU)
