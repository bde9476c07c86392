"""The small checkpoints are read by what reads the official one: diffusers, DiffSynth and transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffsynth.configs.model_configs import z_image_series
from diffsynth.core.loader.file import hash_state_dict_keys
from diffsynth.models.flux_vae import FluxVAEDecoder, FluxVAEEncoder
from diffsynth.models.z_image_dit import ZImageDiT
from diffsynth.utils.state_dict_converters.flux_vae import (
    FluxVAEDecoderStateDictConverterDiffusers,
    FluxVAEEncoderStateDictConverterDiffusers,
)
from diffusers import ZImagePipeline
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3Model

from nano.layout import Z_IMAGE_TURBO, CheckpointSizes
from nano.miniature import random_weights, tensor_shapes, write_miniature

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: ZImagePipeline, prompt: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    result = pipeline(
        prompt,
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=0.0,
        generator=generator,
        output_type="np",
    )
    return 255 * result.images[0]


def test_diffusers_generates_an_image_with_structure(pipeline: ZImagePipeline) -> None:
    image = generate(pipeline, PROMPT)
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
    assert image.std() > 10


def test_prompt_changes_the_image(pipeline: ZImagePipeline) -> None:
    difference = np.abs(generate(pipeline, PROMPT) - generate(pipeline, "a blue circle on a red background")).mean()
    assert difference > 1  # of 255: the same words in another order, and a parity test sees it above rounding


def test_scheduler_gives_turbos_sigmas(pipeline: ZImagePipeline) -> None:
    pipeline.scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 9)[:-1].tolist())
    expected = [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0]
    assert pipeline.scheduler.sigmas.tolist() == pytest.approx(expected, abs=1e-4)


def test_official_sizes_give_the_official_names_and_shapes() -> None:
    """DiffSynth knows a checkpoint by an MD5 over its tensor names and shapes: ours are the ones it knows."""
    known = {entry["model_name"]: entry["model_hash"] for entry in reversed(z_image_series)}
    official = {
        "transformer": "z_image_dit",
        "text_encoder": "z_image_text_encoder",
        "vae": "flux_vae_decoder",
    }
    for component, shapes in tensor_shapes(Z_IMAGE_TURBO).items():
        meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        assert hash_state_dict_keys(meta) == known[official[component]], component


def test_transformer_loads_strictly_in_diffsynth(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "transformer" / "config.json").read_text(encoding="utf-8"))
    transformer = ZImageDiT(**{key: value for key, value in config.items() if not key.startswith("_")})
    weights = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    transformer.load_state_dict(weights, strict=True)


def test_vae_of_official_size_loads_strictly_in_diffsynth() -> None:
    """On the meta device: DiffSynth's sizes are fixed."""
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in tensor_shapes(Z_IMAGE_TURBO)["vae"].items()}
        decoder, encoder = FluxVAEDecoder(use_conv_attention=False), FluxVAEEncoder(use_conv_attention=False)
    decoder.load_state_dict(FluxVAEDecoderStateDictConverterDiffusers(weights), assign=True)
    encoder.load_state_dict(FluxVAEEncoderStateDictConverterDiffusers(weights), assign=True)


def test_text_encoder_loads_completely_in_transformers(checkpoint: Path) -> None:
    model, report = Qwen3Model.from_pretrained(checkpoint / "text_encoder", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.rope_parameters["rope_theta"] == 1_000_000
    stored = load_file(checkpoint / "text_encoder" / "model.safetensors")
    assert torch.equal(model.layers[2].mlp.up_proj.weight, stored["model.layers.2.mlp.up_proj.weight"])


def test_tokenizer_renders_and_encodes(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    assert text == f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert len(tokenizer.encode(PROMPT)) < len(PROMPT) / 2  # merges are in use
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")  # NFC
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")


def test_tokenizer_json_alone_encodes_like_transformers(checkpoint: Path) -> None:
    """transformers builds normalizer and pre-tokenizer itself; the engine has nothing but the file."""
    built = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    read = Tokenizer.from_file(str(checkpoint / "tokenizer" / "tokenizer.json"))
    for text in (PROMPT, "It's 2 cafe\u0301s!\r\n\n  海边的灯塔", "<|im_start|>user\n<think>\n"):
        assert read.encode(text).ids == built.encode(text)
    for part in ("normalizer", "pre_tokenizer"):
        assert json.loads(read.to_str())[part] == json.loads(built.backend_tokenizer.to_str())[part]


def test_tokenizer_round_trips_every_byte(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    text = "Zürich 42 ☂️ 东京\r\n\t~ <think>ok</think>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_equal_configurations_give_equal_bytes(tmp_path: Path) -> None:
    assert contents(write_miniature(tmp_path / "one")) == contents(write_miniature(tmp_path / "again"))


def test_other_seed_gives_other_weights() -> None:
    shapes = {"layers.0.attention.to_q.weight": (8, 8)}
    first, second = (random_weights(shapes, CheckpointSizes(seed=seed)) for seed in (0, 1))
    assert not torch.equal(first["layers.0.attention.to_q.weight"], second["layers.0.attention.to_q.weight"])


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_shards_hold_the_same_tensors_and_the_index_names_each(tmp_path: Path) -> None:
    whole_model, config = write_miniature(tmp_path / "whole"), CheckpointSizes(shards=3)
    sharded = write_miniature(tmp_path / "sharded", config)
    shapes = tensor_shapes(config)
    for component, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        folder = sharded / component
        index = json.loads((folder / f"{stem}.safetensors.index.json").read_text(encoding="utf-8"))
        shards = [f"{stem}-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
        assert sorted(path.name for path in folder.glob("*.safetensors")) == shards
        assert index["weight_map"] == {name: file for file in shards for name in tensor_names(folder / file)}
        assert index["weight_map"].keys() == shapes[component].keys()
        whole = load_file(whole_model / component / f"{stem}.safetensors")
        for file in shards:
            assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(folder / file).items())
    assert not list((sharded / "vae").glob("*.index.json"))


def tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def test_sharded_bfloat16_checkpoint_generates_in_diffusers(tmp_path: Path) -> None:
    directory = write_miniature(tmp_path, CheckpointSizes(shards=2, dtype="bfloat16"))
    stored = load_file(directory / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    pipeline = ZImagePipeline.from_pretrained(directory).to(torch.float32)
    assert generate(pipeline, PROMPT).std() > 10


def test_files_are_readable_by_other_users(tmp_path: Path) -> None:
    """A server in a container reads weights that somebody else wrote."""
    checkpoint = write_miniature(tmp_path)
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode == (checkpoint / "vae" / "config.json").stat().st_mode


def test_non_empty_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must be new or empty"):
        write_miniature(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"dim": 200}, "axes_dims"),
        ({"block_out_channels": (32, 48, 64, 64)}, "must divide channels"),
        ({"vocab_size": 724}, "at least 725"),
    ],
)
def test_contradictory_sizes_are_refused(sizes: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CheckpointSizes(**sizes)
