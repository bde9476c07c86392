"""Opening a checkpoint: where it may come from, and what is said about a damaged one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError
from export.checkpoint.configs import positive, read_json
from export.checkpoint.files import COMPONENTS, Checkpoint, open_checkpoint
from export.checkpoint.hub import FOLDERS
from export.checkpoint.stored_weights import close_files
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


@pytest.mark.slow
@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_unreachable_hub_ends_with_one_line(source: str, tmp_path: Path) -> None:
    """In a process of its own: the hub clients read where they are sent to when they are imported."""
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {
        "DIFFSYNTH_DOWNLOAD_SOURCE": source,
        "DIFFSYNTH_MODEL_BASE_PATH": str(tmp_path),
        "HF_ENDPOINT": nowhere,
        "MODELSCOPE_ENDPOINT": nowhere,
        "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
    }
    command = [sys.executable, "-m", "export.cli", "--model", HUB_ID, "--flavor", "onnx", "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr[done.stderr.rindex("build-engines: ") :]
    assert f"could not download {HUB_ID}" in last and "pass the folder" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("model", ["/no/such/folder", "no-such-folder", "a/b/c", "https://example.com/a/b", "~nobody"])
def test_neither_folder_nor_hub_id_is_refused(model: str) -> None:
    assert "no folder at" in refusal(model) and "owner/name" in refusal(model)


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
    assert str(file) in message and "truncated" in message


@pytest.mark.parametrize("cut", [1, 8, 1000])
def test_weights_without_their_last_bytes_are_refused(copy: Path, cut: int) -> None:
    file = copy / TRANSFORMER
    os.truncate(file, file.stat().st_size - cut)
    assert "truncated" in refusal(copy)


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


def test_index_without_a_weight_map_is_refused(sharded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sharded, tmp_path / "copy")
    (index := copy / f"transformer/{WEIGHTS}.index.json").write_text("{}")
    assert index.name in refusal(copy) and "weight_map" in refusal(copy)


def comfyui(official: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The key layout of ComfyUI's z_image_turbo single files: fused qkv, and its own names."""
    fused: dict[str, torch.Tensor] = {}
    for name, tensor in official.items():
        if ".attention.to_q." in name:
            parts = [official[name.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            fused[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
        elif ".attention.to_k." not in name and ".attention.to_v." not in name:
            fused[name] = tensor
    renamed = {}
    for name, tensor in fused.items():
        comfy = name.replace("all_x_embedder.2-1.", "x_embedder.").replace("all_final_layer.2-1.", "final_layer.")
        comfy = comfy.replace(".to_out.0.", ".out.").replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
        renamed[prefix + comfy] = tensor
    return renamed


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
