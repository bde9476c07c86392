"""Single files with one or all models of a checkpoint, and the folders around them."""

import shutil
from pathlib import Path

import pytest
import torch
from diffsynth.utils.state_dict_converters.flux_vae import (
    FluxVAEDecoderStateDictConverter,
    FluxVAEEncoderStateDictConverter,
)
from fakes.single_files import Tensors, comfyui, ldm_vae
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError
from export.checkpoint import models
from export.checkpoint.files import COMPONENTS, Checkpoint, open_checkpoint
from export.checkpoint.single_file.derived_configs import derive
from export.checkpoint.single_file.ldm_vae import official_vae_weights
from export.checkpoint.stored_weights import StoredWeight
from nano.layout import Z_IMAGE_TURBO, configs
from nano.miniature import tensor_shapes

WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
COMFYUI = {
    "transformer": "model.diffusion_model.",
    "text_encoder": "text_encoders.qwen3_4b.transformer.",
    "vae": "vae.",
}
PREFIXES = [
    COMFYUI,
    {"transformer": "diffusion_model.", "text_encoder": "text_encoder.", "vae": "first_stage_model."},
    {"transformer": "", "text_encoder": "qwen3_4b.transformer.", "vae": "vae."},
]


def official(checkpoint: Path) -> dict[str, Tensors]:
    return {part: load_file(checkpoint / file) for part, file in WEIGHTS.items()}


def all_in_one(checkpoint: Path, prefixes: dict[str, str] = COMFYUI) -> Tensors:
    parts = official(checkpoint)
    parts["transformer"] = comfyui(parts["transformer"], "")
    parts["vae"] = ldm_vae(parts["vae"])
    return {prefixes[part] + key: tensor for part, tensors in parts.items() for key, tensor in tensors.items()}


def save(file: Path, tensors: Tensors) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    return file


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with an all-in-one file, and of the official folders only tokenizer and scheduler."""
    (folder := tmp_path / "all-in-one").mkdir()
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(checkpoint / part, folder / part)
    save(folder / "z-image.safetensors", all_in_one(checkpoint))
    return folder


def assert_is_nano(opened: Checkpoint, checkpoint: Path) -> None:
    for part, tensors in official(checkpoint).items():
        weights = getattr(opened, part).weights
        assert weights.keys() == tensors.keys(), part
        for name, weight in weights.items():
            assert weight.shape == tensors[name].shape
            assert torch.equal(weight.load(), tensors[name]), name


def refusal(model: Path, transformer_file: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(model), transformer_file)
    return str(caught.value)


def test_transformer_is_taken_from_an_all_in_one_file(checkpoint: Path, folder: Path) -> None:
    opened = open_checkpoint(str(checkpoint), folder / "z-image.safetensors")
    assert_is_nano(opened, checkpoint)
    assert opened.transformer.files == (folder / "z-image.safetensors",)
    assert opened.vae.files == (checkpoint / WEIGHTS["vae"],)


def test_folder_with_an_all_in_one_file_has_all_models(checkpoint: Path, folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "._z-image.safetensors").write_bytes(b"\0\5\x16\7")
    by_folder, by_file = open_checkpoint(str(folder)), open_checkpoint(str(folder / "z-image.safetensors"))
    assert (by_folder.name, by_file.name) == ("all-in-one", "z-image")
    assert by_folder.fingerprint() == by_file.fingerprint()
    assert len(by_folder.files) == 4, "one file of weights, two of the tokenizer, one of the scheduler"
    for opened in (by_folder, by_file):
        assert_is_nano(opened, checkpoint)
        models.transformer(opened.transformer), models.text_encoder(opened.text_encoder)
        assert models.vae_encoder(opened.vae) is not None


@pytest.mark.parametrize("prefixes", PREFIXES, ids=["ComfyUI", "diffusers and LDM", "bare transformer"])
def test_parts_are_found_under_any_prefix(checkpoint: Path, folder: Path, prefixes: dict[str, str]) -> None:
    unneeded = {"text_encoders.qwen3_4b.logit_scale": torch.ones(()), "model_ema.decay": torch.ones(())}
    save(
        folder / "z-image.safetensors", all_in_one(checkpoint, prefixes) | (unneeded if prefixes["transformer"] else {})
    )
    assert_is_nano(open_checkpoint(str(folder)), checkpoint)


@pytest.mark.parametrize("part", COMPONENTS)
def test_derived_config_has_the_sizes_of_nano(checkpoint: Path, folder: Path, part: str) -> None:
    ours = getattr(open_checkpoint(str(folder)), part)
    theirs = getattr(open_checkpoint(str(checkpoint)), part).config
    assert ours.derived
    expected = {key: theirs[key] for key in ours.config} | ({"sample_size": 1024} if part == "vae" else {})
    assert ours.config == expected


@pytest.mark.parametrize("part", COMPONENTS)
def test_derived_config_of_the_real_sizes_is_the_official_one(part: str) -> None:
    shapes = tensor_shapes(Z_IMAGE_TURBO)[part]
    weights = {name: StoredWeight(Path("none"), name, shape) for name, shape in shapes.items()}
    expected = configs(Z_IMAGE_TURBO)[f"{part}/config.json"]
    derived = derive(part, weights)
    assert derived == {key: expected[key] for key in derived}
    sizes = {
        "transformer": "cap_feat_dim axes_dims n_heads",
        "text_encoder": "head_dim vocab_size",
        "vae": "sample_size",
    }
    assert set(sizes[part].split()) <= derived.keys()


def test_config_in_a_folder_comes_before_the_derived_one(checkpoint: Path, folder: Path) -> None:
    (folder / "vae").mkdir()
    shutil.copyfile(checkpoint / "vae/config.json", folder / "vae/config.json")
    opened = open_checkpoint(str(folder))
    assert opened.vae.config["sample_size"] == 256 and not opened.vae.derived
    assert_is_nano(opened, checkpoint)
    assert folder / "vae/config.json" in opened.files


def test_folder_with_weights_comes_before_the_file_unless_the_file_is_named(checkpoint: Path, folder: Path) -> None:
    shutil.copytree(checkpoint / "vae", folder / "vae")
    opened = open_checkpoint(str(folder))
    assert opened.vae.files == (folder / WEIGHTS["vae"],)
    assert opened.transformer.files == (folder / "z-image.safetensors",)
    named = open_checkpoint(str(folder / "z-image.safetensors"))
    assert named.vae.files == (folder / "z-image.safetensors",)
    assert_is_nano(named, checkpoint)


def test_missing_part_of_a_single_file_is_named(checkpoint: Path, folder: Path) -> None:
    save(folder / "z-image.safetensors", {k: t for k, t in all_in_one(checkpoint).items() if not k.startswith("vae.")})
    assert "holds transformer, text_encoder; vae is missing" in refusal(folder)


def test_two_files_in_place_of_folders_are_refused(folder: Path) -> None:
    shutil.copyfile(folder / "z-image.safetensors", folder / "other.safetensors")
    assert "2 files (other.safetensors, z-image.safetensors); pass one" in refusal(folder)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"lora_unet_layers_0_attention_qkv.lora_down.weight": torch.ones(1)}, "is a LoRA"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, "got tensors such as double_blocks.0.img_attn"),
        ({"decoder.conv_in.weight": torch.ones(1)}, "got vae"),
        ({"model.embed_tokens.weight": torch.ones(1)}, "got text_encoder"),
        (
            {"a.x_embedder.weight": torch.ones(1), "b.x_embedder.weight": torch.ones(1)},
            "more than one transformer: 'a.'",
        ),
        ({"x_embedder.weight": torch.ones(1), "decoder.conv_in.weight": torch.ones(1)}, "no prefix to tell them apart"),
        (
            {"x_embedder.weight": torch.ones(1), "all_x_embedder.2-1.weight": torch.ones(1)},
            "are both all_x_embedder.2-1.weight",
        ),
    ],
)
def test_file_without_one_transformer_is_refused(
    checkpoint: Path, tmp_path: Path, tensors: Tensors, complaint: str
) -> None:
    assert complaint in refusal(checkpoint, save(tmp_path / "file.safetensors", tensors))


def test_transformer_folder_is_not_needed_beside_a_transformer_file(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    shutil.rmtree(copy / "transformer")
    assert_is_nano(open_checkpoint(str(copy), folder / "z-image.safetensors"), checkpoint)


def test_vae_folder_takes_the_original_keys(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / WEIGHTS["vae"]).unlink()
    save(copy / "vae/ae.safetensors", ldm_vae(load_file(checkpoint / WEIGHTS["vae"])))
    assert_is_nano(open_checkpoint(str(copy)), checkpoint)


@pytest.mark.parametrize(
    ("half", "converter"),
    [("decoder", FluxVAEDecoderStateDictConverter), ("encoder", FluxVAEEncoderStateDictConverter)],
)
def test_original_vae_keys_map_as_diffsynth_maps_them(half: str, converter: object) -> None:
    shapes = tensor_shapes(Z_IMAGE_TURBO)["vae"]
    original = ldm_vae({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    weights = {key: StoredWeight(Path("none"), key, tuple(tensor.shape)) for key, tensor in original.items()}
    official_names = official_vae_weights(weights)
    assert {name: weight.shape for name, weight in official_names.items()} == shapes
    build = {"decoder": models.vae_decoder, "encoder": models.vae_encoder}[half]
    component = open_vae(official_names)
    model = build(component)
    assert model is not None
    expected = converter({key: key for key in original if key.startswith(half)})  # type: ignore[operator]
    assert {name: weight.source.split(" in ")[0] for name, weight in model.weights.items()} == expected


def open_vae(weights: object) -> models.Component:
    return models.Component("vae", configs(Z_IMAGE_TURBO)["vae/config.json"], weights, ())  # type: ignore[arg-type]
