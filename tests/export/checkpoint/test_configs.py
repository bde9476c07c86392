"""Every key of a configuration is followed, has its only supported value, or does not change the image."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Config

from engine.errors import CheckpointError
from engine.sampling.schedule import sigmas
from export.checkpoint.configs import KEYS, check_keys, finite, read_json
from export.checkpoint.files import open_checkpoint
from nano.layout import Z_IMAGE_TURBO, configs

CLASSES = {
    "scheduler": FlowMatchEulerDiscreteScheduler,
    "transformer": ZImageTransformer2DModel,
    "text_encoder": Qwen3Config,
    "vae": AutoencoderKL,
}
FILES = {folder: f"{folder}/{'scheduler_config' if folder == 'scheduler' else 'config'}.json" for folder in KEYS}
SAMPLING = {  # another value of every key of the scheduler
    "num_train_timesteps": 500,
    "use_dynamic_shifting": True,
    "use_karras_sigmas": True,
    "use_exponential_sigmas": True,
    "use_beta_sigmas": True,
    "invert_sigmas": True,
    "shift_terminal": 0.1,
    "stochastic_sampling": True,
}
UNUSED = {
    "base_shift": 0.7,
    "max_shift": 3.0,
    "base_image_seq_len": 64,
    "max_image_seq_len": 1024,
    "time_shift_type": "linear",
}


def official(folder: str) -> dict[str, Any]:
    return dict(configs(Z_IMAGE_TURBO)[FILES[folder]])


def refusal(folder: str, change: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_keys(official(folder) | change, folder)
    return str(caught.value)


@pytest.mark.parametrize("folder", KEYS)
def test_official_config_passes(folder: str) -> None:
    check_keys(official(folder), folder)


@pytest.mark.parametrize("folder", KEYS)
def test_every_key_of_the_class_is_known(folder: str) -> None:
    keys = KEYS[folder]
    known = keys.followed | keys.required.keys() | keys.every.keys() | keys.unused
    parameters = inspect.signature(CLASSES[folder]).parameters.keys()
    assert parameters <= known, "a new version of diffusers or transformers has keys that must be decided on"


def timesteps(change: dict[str, Any]) -> tuple[list[float], list[float], bool]:
    """Return what the scheduler decides in Z-Image's pipeline: sigmas, the model's timesteps, whether it adds noise."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(official("scheduler") | change)
    scheduler.set_timesteps(8, sigmas=np.linspace(1, 0, 9)[:-1].tolist(), mu=0.8)
    return scheduler.sigmas.tolist(), scheduler.timesteps.tolist(), scheduler.config.stochastic_sampling


def test_schedule_is_that_of_diffusers() -> None:
    for change in ({}, {"shift": 6.0}, UNUSED):
        shift = change.get("shift", 3.0)
        assert np.allclose(timesteps(change)[0], sigmas(8, shift), atol=1e-7)  # float32
        check_keys(official("scheduler") | change, "scheduler")


@pytest.mark.parametrize("key", SAMPLING)
def test_scheduler_key_that_changes_the_image_is_refused(key: str) -> None:
    change = {key: SAMPLING[key]}
    assert timesteps(change) != timesteps({}), "diffusers would draw the same image"
    message = refusal("scheduler", change)
    assert message.startswith(f"scheduler/scheduler_config.json: {key} must be")
    assert f"got {SAMPLING[key]!r}" in message


def test_scheduler_keys_are_all_tried() -> None:
    keys = KEYS["scheduler"]
    assert SAMPLING.keys() == keys.required.keys() and UNUSED.keys() == keys.unused


@pytest.mark.parametrize("kind", ["karras", "beta", "exponential"])
def test_checkpoint_with_another_schedule_does_not_open(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    path = copy / FILES["scheduler"]
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {f"use_{kind}_sigmas": True}))
    with pytest.raises(CheckpointError, match=f"use_{kind}_sigmas must be False, got True"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("folder", "change", "complaint"),
    [
        ("scheduler", {"_class_name": "DPMSolverMultistepScheduler"}, "_class_name must be FlowMatchEuler"),
        (
            "scheduler",
            {"sigma_min": 0.01},
            "keys that may change the image in a way that is not known: sigma_min 0.01;",
        ),
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "_class_name must be ZImageTransformer2DModel"),
        ("transformer", {"all_f_patch_size": [2]}, "all_f_patch_size must be [1], got [2]"),
        ("transformer", {"quantization_config": {"quant_method": "bitsandbytes"}}, "weights are quantized"),
        ("transformer", {"guidance_embeds": True, "axes": [1]}, "guidance_embeds true, axes [1]; remove those"),
        ("text_encoder", {"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ("text_encoder", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must hold"),
        ("text_encoder", {"layer_types": "full_attention"}, "layer_types must hold 'full_attention' only"),
        ("text_encoder", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("text_encoder", {"quantization_config": {"bits": 4}}, "text_encoder/config.json has quantization_config"),
        ("vae", {"_class_name": "AutoencoderKLFlux2"}, "_class_name must be AutoencoderKL"),
        ("vae", {"act_fn": "gelu"}, "act_fn must be 'silu', got 'gelu'"),
        ("vae", {"mid_block_add_attention": False}, "mid_block_add_attention must be True, got False"),
        ("vae", {"latents_mean": [0.1], "latents_std": [1.0]}, "latents_mean must be None, got [0.1]"),
        ("vae", {"use_quant_conv": True}, "use_quant_conv must be False, got True"),
        ("vae", {"out_channels": 4}, "out_channels must be 3, got 4"),
        ("vae", {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "must hold 'UpDecoderBlock2D' only"),
    ],
)
def test_value_that_changes_the_image_is_refused(folder: str, change: dict[str, Any], complaint: str) -> None:
    message = refusal(folder, change)
    assert message.startswith(FILES[folder])
    assert complaint in message and "\n" not in message


def test_absent_key_has_the_value_of_diffusers() -> None:
    config = official("vae")
    del config["use_quant_conv"]
    with pytest.raises(CheckpointError, match="use_quant_conv must be False, got True"):
        check_keys(config, "vae")


@pytest.mark.parametrize("folder", KEYS)
@pytest.mark.parametrize("unset", [{"new_key": None}, {"new_key": False}, {"new_key": []}, {"_note": 1}])
def test_unset_keys_and_metadata_pass(folder: str, unset: dict[str, Any]) -> None:
    check_keys(official(folder) | unset, folder)


@pytest.mark.parametrize(
    ("folder", "change"),
    [
        ("scheduler", {"shift_terminal": 0, "use_karras_sigmas": None, "num_train_timesteps": 1000.0}),
        ("text_encoder", {"torch_dtype": None, "dtype": "float16", "sliding_window": 4096, "max_window_layers": 28}),
        ("text_encoder", {"layer_types": ["full_attention"] * 36, "tie_word_embeddings": False}),
        ("vae", {"force_upcast": False}),
    ],
)
def test_values_that_do_not_change_the_image_pass(folder: str, change: dict[str, Any]) -> None:
    check_keys(official(folder) | change, folder)


@pytest.mark.parametrize("shift", ["0.1", float("nan"), None, True])
def test_shift_factor_must_be_finite(shift: object) -> None:
    assert finite({"shift_factor": -0.5}, "shift_factor") == -0.5
    with pytest.raises(CheckpointError, match="shift_factor must be a finite number"):
        finite({"shift_factor": shift}, "shift_factor")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"<html>404</html>", "HTML page"),
        (b"", "is empty"),
        (b'{"shift": 3.0,}', "is not JSON: "),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_config_that_is_no_json_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (file := tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_json(file)
    assert str(caught.value).startswith(str(file))
    assert complaint in str(caught.value)


def test_config_behind_a_dangling_link_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "config.json").symlink_to("../blobs/1")
    with pytest.raises(CheckpointError, match=r"is a link to \.\./blobs/1, which does not exist"):
        read_json(file)
