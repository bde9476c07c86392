"""Opening a checkpoint: where it may come from, and what is said about a damaged one."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes.single_files import comfyui
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.harness.eager import Diffusers
from engine.errors import CheckpointError
from export.checkpoint import models
from export.checkpoint.configs import positive, read_json
from export.checkpoint.files import COMPONENTS, Checkpoint, open_checkpoint
from export.checkpoint.hub import FOLDERS
from export.checkpoint.stored_weights import close_files, stored_weights
from export.graphs.checkpoint_graphs import make_graphs
from export.precision.dtypes import graph_precisions
from nano.layout import CheckpointSizes
from nano.miniature import write_miniature

WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMER = f"transformer/{WEIGHTS}"
HUB_ID = "Tongyi-MAI/Z-Image-Turbo"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def refusal(model: Path | str, transformer_file: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(model), transformer_file)
    return str(caught.value)


def assert_same_weights(one: Checkpoint, other: Checkpoint, components: tuple[str, ...] = COMPONENTS) -> None:
    for component in components:
        ours, theirs = getattr(one, component).weights, getattr(other, component).weights
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            assert weight.shape == tuple(weight.load().shape)
            assert torch.equal(weight.load(), theirs[name].load()), name


def test_nano_opens(checkpoint: Path) -> None:
    opened = open_checkpoint(str(checkpoint))
    assert opened.name == "z-image-nano"
    assert opened.transformer.config["dim"] == 192
    stored = load_file(checkpoint / TRANSFORMER)
    assert opened.transformer.weights.keys() == stored.keys()
    assert all(torch.equal(opened.transformer.weights[name].load(), tensor) for name, tensor in stored.items())
    stored = sum(file.stat().st_size for file in opened.files if file.suffix == ".safetensors")
    assert 0.98 * stored < 2 * opened.parameters < stored  # BF16 and headers


@pytest.mark.parametrize("shift", ["3", float("nan"), float("inf"), 0, -1, None, [], True])
def test_number_of_wrong_type_is_refused(tmp_path: Path, shift: object) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"shift": shift}))
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json: shift must be a number above zero, got"):
        positive(read_json(tmp_path / "scheduler_config.json"), "shift")


def test_hub_id_that_was_downloaded_before_opens(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / HUB_ID)
    monkeypatch.setenv("DIFFSYNTH_SKIP_DOWNLOAD", "True")
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", str(tmp_path))
    opened = open_checkpoint(HUB_ID)
    assert opened.name == HUB_ID
    assert opened.fingerprint() == open_checkpoint(str(checkpoint)).fingerprint()
    assert capsys.readouterr().out == "", "stdout belongs to the path that build-engines prints"


@pytest.mark.parametrize("folder", FOLDERS)
def test_missing_folder_is_named(copy: Path, folder: str) -> None:
    shutil.rmtree(copy / folder)
    assert f"no folder {folder}/" in refusal(copy)


@pytest.mark.parametrize(
    "file",
    [
        "transformer/config.json",
        "text_encoder/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        TRANSFORMER,
    ],
)
def test_missing_file_is_named(copy: Path, file: str) -> None:
    (copy / file).unlink()
    message = refusal(copy)
    assert Path(file).parent.name in message
    assert Path(file).name in message or ".safetensors" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"dim": 192'])
def test_config_that_is_no_json_object_is_refused(copy: Path, content: bytes) -> None:
    (copy / "transformer/config.json").write_bytes(content)
    assert "transformer/config.json" in refusal(copy)


def test_missing_config_key_is_named(copy: Path) -> None:
    (copy / "vae/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    opened = open_checkpoint(str(copy))
    with pytest.raises(CheckpointError, match=r"vae/config\.json has no sample_size"):
        opened.vae.config["sample_size"]


@pytest.fixture(scope="module")
def whole_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes]]:
    copy = shutil.copytree(checkpoint, tmp_path_factory.mktemp("truncated") / "copy")
    yield copy, (copy / TRANSFORMER).read_bytes()


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None)
def test_truncated_weights_are_refused(whole_file: tuple[Path, bytes], share: float) -> None:
    directory, content = whole_file
    file = directory / "transformer" / f"{share}.safetensors"  # `_open` keeps files by name
    for old in (directory / "transformer").glob("*.safetensors"):
        old.unlink()
    file.write_bytes(content[: int(share * len(content))])
    message = refusal(directory)
    assert str(file) in message and ("truncated" in message or "empty" in message)


@pytest.mark.parametrize("cut", [1, 8, 1000])
def test_weights_without_their_last_bytes_are_refused(copy: Path, cut: int) -> None:
    file = copy / TRANSFORMER
    os.truncate(file, file.stat().st_size - cut)
    assert "truncated" in refusal(copy)


def test_files_that_macos_and_windows_add_are_passed_over(checkpoint: Path, copy: Path) -> None:
    for folder in COMPONENTS:
        for name in (f"._{WEIGHTS}", f"._{WEIGHTS}.index.json", ".DS_Store", "Thumbs.db", "._config.json"):
            (copy / folder / name).write_bytes(b"\0\5\x16\7" + bytes(100))
    (copy / "._transformer").write_bytes(b"\0\5\x16\7")
    opened = open_checkpoint(str(copy))
    assert_same_weights(opened, open_checkpoint(str(checkpoint)))
    assert opened.fingerprint() == open_checkpoint(str(checkpoint)).fingerprint()


def test_only_file_added_by_macos_is_no_weights_file(copy: Path) -> None:
    (copy / TRANSFORMER).rename(copy / f"transformer/._{WEIGHTS}")
    assert "one .safetensors file or an index of its shards, found none" in refusal(copy)


def test_variant_of_the_weights_is_passed_over(checkpoint: Path, copy: Path) -> None:
    (copy / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert_same_weights(open_checkpoint(str(copy)), open_checkpoint(str(checkpoint)))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("pytorch_model.bin", b"\x80\2}q\0.", "pytorch_model.bin is a PyTorch pickle"),
        ("model.gguf", b"GGUF\3\0\0\0", "model.gguf is a GGUF file"),
        (f"{WEIGHTS}.part", (1000).to_bytes(8, "little") + b'{"a"', f"{WEIGHTS}.part is truncated"),
        (f"{WEIGHTS}.incomplete", b"", f"{WEIGHTS}.incomplete is empty"),
    ],
)
def test_folder_with_weights_in_another_format_names_it(copy: Path, name: str, content: bytes, complaint: str) -> None:
    (copy / TRANSFORMER).unlink()
    (copy / "transformer" / name).write_bytes(content)
    assert f"found none; {complaint}" in refusal(copy)


@pytest.mark.parametrize("shard_size", ["10GB", "1MB"], ids=["whole", "sharded"])
def test_pipeline_saved_by_diffusers_opens(checkpoint: Path, tmp_path: Path, shard_size: str) -> None:
    """Current transformers save Qwen3 without its head, and its keys without `model.`."""
    original = open_checkpoint(str(checkpoint))
    Diffusers(original)._pipeline.save_pretrained(tmp_path / "saved", max_shard_size=shard_size)
    saved = open_checkpoint(str(tmp_path / "saved"))
    assert (len(saved.text_encoder.files) > 1) == (shard_size == "1MB")
    keys = {key for key, _ in stored_weights(saved.text_encoder.files)}
    assert "layers.0.mlp.up_proj.weight" in keys, "keys without model."
    for component in COMPONENTS:
        ours, theirs = getattr(saved, component).weights, getattr(original, component).weights
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(weight.load(), theirs[name].load().float()) for name, weight in ours.items())
    make_graphs(saved, graph_precisions("fp32", "onnx"))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_text_encoder_opens_with_and_without_head_and_prefix(
    checkpoint: Path, copy: Path, prefix: str, head: bool
) -> None:
    file = copy / "text_encoder/model.safetensors"
    tensors = {prefix + key.removeprefix("model."): tensor for key, tensor in load_file(file).items()}
    save_file(tensors | ({"lm_head.weight": torch.zeros(768, 192)} if head else {}), file)
    opened, official = open_checkpoint(str(copy)).text_encoder, open_checkpoint(str(checkpoint)).text_encoder
    ours, theirs = models.text_encoder(opened).weights, models.text_encoder(official).weights
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight.load(), theirs[name].load()) for name, weight in ours.items())


def test_text_encoder_with_a_tensor_under_both_keys_is_refused(copy: Path) -> None:
    file = copy / "text_encoder/model.safetensors"
    save_file(load_file(file) | {"norm.weight": torch.zeros(192)}, file)
    assert "are both model.norm.weight" in refusal(copy)


def test_name_of_the_model_can_be_set(checkpoint: Path) -> None:
    assert open_checkpoint(str(checkpoint), name="my/model").name == "my/model"


def test_two_weight_files_without_an_index_are_refused(copy: Path) -> None:
    shutil.copyfile(copy / TRANSFORMER, copy / "transformer/other.safetensors")
    message = refusal(copy)
    assert WEIGHTS in message and "other.safetensors" in message


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature(tmp_path_factory.mktemp("sharded") / "miniature", CheckpointSizes(shards=3))


def test_shards_open_as_one_file_does(sharded: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(str(sharded))
    assert len(opened.transformer.files) == len(opened.text_encoder.files) == 3
    assert_same_weights(opened, open_checkpoint(str(write_miniature(tmp_path / "whole"))))


def test_missing_shard_is_refused(sharded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sharded, tmp_path / "copy")
    (shard := copy / "text_encoder/model-00002-of-00003.safetensors").unlink()
    assert shard.name in refusal(copy)


@pytest.mark.parametrize("content", ['{"weight_map": []}', '{"weight_map": {"a": "../other.safetensors"}}'])
def test_index_that_names_no_shards_in_its_folder_is_refused(sharded: Path, tmp_path: Path, content: str) -> None:
    copy = shutil.copytree(sharded, tmp_path / "copy")
    (copy / f"transformer/{WEIGHTS}.index.json").write_text(content)
    assert "weight_map must give the name of a file" in refusal(copy)


def test_index_without_a_weight_map_is_refused(sharded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sharded, tmp_path / "copy")
    (index := copy / f"transformer/{WEIGHTS}.index.json").write_text("{}")
    assert index.name in refusal(copy) and "weight_map" in refusal(copy)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_comfyui_file_opens_as_the_same_transformer(checkpoint: Path, tmp_path: Path, prefix: str) -> None:
    tensors = comfyui(load_file(checkpoint / TRANSFORMER), prefix)
    assert f"{prefix}layers.0.attention.qkv.weight" in tensors
    blocks = 6 + 2 + 2
    assert len(tensors) == len(load_file(checkpoint / TRANSFORMER)) - 2 * blocks
    save_file(tensors | {f"{prefix}norm_final.weight": torch.ones(192)}, tmp_path / "comfy.safetensors")
    opened = open_checkpoint(str(checkpoint), tmp_path / "comfy.safetensors")
    official = open_checkpoint(str(checkpoint))
    assert_same_weights(opened, official)
    assert opened.fingerprint() != official.fingerprint()


def test_single_file_in_the_official_key_layout_opens(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copyfile(checkpoint / TRANSFORMER, tmp_path / "single.safetensors")
    opened = open_checkpoint(str(checkpoint), tmp_path / "single.safetensors")
    assert_same_weights(opened, open_checkpoint(str(checkpoint)))


def test_missing_transformer_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'none.safetensors'} does not exist" in refusal(checkpoint, tmp_path / "none.safetensors")


def test_fingerprint_does_not_depend_on_the_path(checkpoint: Path, copy: Path) -> None:
    assert open_checkpoint(str(copy)).fingerprint() == open_checkpoint(str(checkpoint)).fingerprint()


def test_one_byte_of_any_file_changes_the_fingerprint(copy: Path) -> None:
    opened = open_checkpoint(str(copy))
    fingerprints = {opened.fingerprint()}
    assert len(opened.files) == 9
    for file in opened.files:
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
        fingerprints.add(opened.fingerprint())
    assert len(fingerprints) == 1 + len(opened.files)


def test_chat_template_file_changes_the_fingerprint(copy: Path) -> None:
    before = open_checkpoint(str(copy)).fingerprint()
    config = json.loads((copy / "tokenizer/tokenizer_config.json").read_bytes())
    (copy / "tokenizer/chat_template.jinja").write_text(config["chat_template"])
    assert open_checkpoint(str(copy)).fingerprint() != before


def test_closed_files_are_no_longer_mapped(copy: Path) -> None:
    weights = open_checkpoint(str(copy)).transformer.weights

    def is_mapped() -> bool:
        return str(copy) in Path("/proc/self/maps").read_text()

    for weight in weights.values():
        weight.load()
    assert is_mapped()
    close_files()
    assert not is_mapped()
