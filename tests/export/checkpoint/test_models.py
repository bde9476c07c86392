"""Checkpoints whose models can be built: strict about names and shapes, plain about other variants."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffsynth.models.flux_vae import FluxVAEDecoder, FluxVAEEncoder
from diffsynth.utils.state_dict_converters.flux_vae import (
    FluxVAEDecoderStateDictConverterDiffusers,
    FluxVAEEncoderStateDictConverterDiffusers,
)

from engine.errors import CheckpointError
from export.checkpoint import models
from export.checkpoint.files import Checkpoint, Component, open_checkpoint
from export.checkpoint.stored_weights import StoredWeight
from export.checkpoint.vae_modules import ConfiguredVaeDecoder, ConfiguredVaeEncoder
from export.graphs.prompt_encoder import rope_theta
from nano.layout import Z_IMAGE_TURBO, text_encoder_config, vae_config
from nano.miniature import tensor_shapes

BUILD: dict[str, Callable[[Component], models.Model]] = {
    "transformer": models.transformer,
    "text_encoder": models.text_encoder,
    "vae": models.vae_decoder,
}
ONE_TENSOR = [
    ("transformer", "layers.3.feed_forward.w2.weight"),
    ("transformer", "x_pad_token"),
    ("text_encoder", "model.layers.0.self_attn.q_norm.weight"),
    ("vae", "decoder.conv_norm_out.bias"),
    ("vae", "decoder.mid_block.attentions.0.to_out.0.weight"),
    ("vae", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
]
NONE = Path("none.safetensors")  # shapes are compared before anything is read


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint))


def component(opened: Checkpoint, name: str) -> Component:
    part: Component = getattr(opened, name)
    return dataclasses.replace(part, config=dict(part.config), weights=dict(part.weights))


def refusal(part: Component) -> str:
    with pytest.raises(CheckpointError) as caught:
        BUILD[part.name](part)
    return str(caught.value)


@pytest.mark.parametrize("name", BUILD)
def test_every_parameter_gets_its_tensor(opened: Checkpoint, name: str) -> None:
    model = BUILD[name](component(opened, name))
    parameters = dict(model.module.named_parameters())
    assert model.weights.keys() == parameters.keys()
    assert all(parameter.is_meta for parameter in parameters.values())
    loaded = dict(model.load().named_parameters())
    assert all(torch.equal(loaded[key], weight.load().float()) for key, weight in model.weights.items())


@pytest.mark.parametrize(("name", "tensor"), ONE_TENSOR)
def test_missing_tensor_is_named(opened: Checkpoint, name: str, tensor: str) -> None:
    part = component(opened, name)
    del part.weights[tensor]
    assert refusal(part) == f"{name}/ does not match its config.json: missing: {tensor}"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("transformer", "layers.6.feed_forward.w2.weight"),
        ("text_encoder", "model.layers.0.mlp.gate_proj.lora_A.weight"),
        ("vae", "decoder.up_blocks.4.resnets.0.conv1.weight"),
        ("vae", "post_quant_conv.weight"),
    ],
)
def test_extra_tensor_is_named(opened: Checkpoint, name: str, tensor: str) -> None:
    part = component(opened, name)
    part.weights[tensor] = StoredWeight(NONE, tensor, (8, 8))
    assert refusal(part) == f"{name}/ does not match its config.json: extra: {tensor}"


@pytest.mark.parametrize(("name", "tensor"), [("text_encoder", "lm_head.weight"), ("vae", "quant_conv.weight")])
def test_known_unused_tensor_is_accepted(opened: Checkpoint, name: str, tensor: str) -> None:
    part = component(opened, name)
    part.weights[tensor] = StoredWeight(NONE, tensor, (8, 8))
    BUILD[name](part)


@pytest.mark.parametrize(("name", "tensor"), ONE_TENSOR)
def test_misshaped_tensor_is_named_with_both_shapes(opened: Checkpoint, name: str, tensor: str) -> None:
    part = component(opened, name)
    weight = part.weights[tensor]
    part.weights[tensor] = dataclasses.replace(weight, shape=(7, *weight.shape))
    assert refusal(part) == (
        f"{name}/ does not match its config.json: wrong shape: {tensor} is {[7, *weight.shape]}, "
        f"config.json makes it {[*weight.shape]}"
    )


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("transformer", {"dim": 240, "axes_dims": [32, 24, 24]}, "config.json makes it [240"),
        ("transformer", {"dim": 200}, "config.json does not describe a model: AssertionError: its sizes contradict"),
        ("transformer", {"n_layers": 7}, "missing: layers.6."),
        ("transformer", {"n_layers": 5}, "extra: layers.5."),
        ("text_encoder", {"hidden_size": 160}, "config.json makes it [768, 160]"),
        ("text_encoder", {"num_hidden_layers": 5, "layer_types": None}, "missing: model.layers.4."),
        ("text_encoder", {"hidden_size": "192"}, "config.json does not describe a model"),
        ("vae", {"block_out_channels": [16, 32, 64, 96]}, "config.json makes it [96"),
        ("vae", {"block_out_channels": [32, 64, 64]}, "decoder.up_blocks.3."),
        ("vae", {"layers_per_block": 3}, "missing: decoder.up_blocks.0.resnets.3."),
        ("transformer", {"rope_theta": "256"}, "config.json: rope_theta must be a number above zero, got '256'"),
        ("vae", {"scaling_factor": 0}, "config.json: scaling_factor must be a number above zero, got 0"),
        ("vae", {"sample_size": None}, "config.json: sample_size must be a number above zero, got None"),
        ("vae", {"norm_num_groups": 24}, "config.json does not describe a model: ValueError"),
    ],
)
def test_config_that_does_not_match_its_weights_is_refused(
    checkpoint: Path, tmp_path: Path, file: str, change: dict[str, Any], complaint: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    path = copy / file / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    message = refusal(getattr(open_checkpoint(str(copy)), file))
    assert message.startswith(file)
    assert complaint in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("transformer", {"siglip_feat_dim": 1152}, "Z-Image-Omni is not supported"),
        ("transformer", {"n_kv_heads": 2}, "n_kv_heads 2 must equal n_heads 3"),
        ("transformer", {"qk_norm": False}, "qk_norm must be True, got False"),
        ("transformer", {"all_patch_size": [2, 4]}, "all_patch_size must be [2], got [2, 4]"),
        ("text_encoder", {"model_type": "llama"}, "model_type must be 'qwen3', got 'llama'"),
        ("text_encoder", {"attention_bias": True}, "attention_bias must be False, got True"),
        ("text_encoder", {"use_sliding_window": True}, "use_sliding_window must be False, got True"),
        ("vae", {"use_post_quant_conv": True}, "use_post_quant_conv must be False, got True"),
    ],
)
def test_model_variant_is_refused_by_name(
    opened: Checkpoint, name: str, change: dict[str, Any], complaint: str
) -> None:
    part = component(opened, name)
    part.config.update(change)
    assert refusal(part).startswith(f"{name}/config.json")
    assert complaint in refusal(part)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_scaled_rope_is_refused(key: str, kind: str) -> None:
    config = text_encoder_config(Z_IMAGE_TURBO) | {key: {kind: "yarn", "factor": 4.0}}
    with pytest.raises(CheckpointError, match=r"rope_type must be default, got .*yarn"):
        rope_theta(config)


@pytest.mark.parametrize(
    "where", [{"rope_theta": 1e6}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}]
)
def test_rope_base_is_read_from_either_place(where: dict[str, Any]) -> None:
    assert rope_theta(where) == 1e6


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"rope_theta": 1e6, "partial_rotary_factor": 0.5}, "must not have partial_rotary_factor, got 0.5"),
        ({"rope_theta": 1e6, "mrope_section": [8, 8]}, "must not have mrope_section"),
        ({"full_attention": {"rope_theta": 1e6}}, "must not have full_attention"),
        ("default", "rope_parameters must be an object, got 'default'"),
        ({"rope_theta": "1000000"}, "rope_theta must be a number above zero, got '1000000'"),
        ({"rope_theta": 0}, "rope_theta must be a number above zero, got 0"),
    ],
)
def test_other_rotary_parameters_are_refused_by_name(parameters: object, complaint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        rope_theta({"rope_parameters": parameters})
    assert complaint in str(caught.value)


def test_rotary_parameters_without_effect_pass() -> None:
    assert rope_theta({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 1.0, "factor": None}}) == 1e6


def test_missing_rope_base_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no rope_theta"):
        rope_theta({"rope_scaling": None})


@pytest.mark.parametrize(("name", "key"), [("text_encoder", "hidden_size"), ("vae", "latent_channels")])
def test_components_of_different_models_are_refused(opened: Checkpoint, name: str, key: str) -> None:
    parts = {each: component(opened, each) for each in BUILD}
    models.require_match(**parts)
    parts[name].config[key] = 8
    with pytest.raises(CheckpointError, match=f"{name}/config.json: {key} 8 must be the transformer's"):
        models.require_match(**parts)


VAE_HALVES = {"decoder": models.vae_decoder, "encoder": models.vae_encoder}
CONVERTERS = {
    "decoder": FluxVAEDecoderStateDictConverterDiffusers,
    "encoder": FluxVAEEncoderStateDictConverterDiffusers,
}


@pytest.mark.parametrize(
    ("configured", "original"),
    [(ConfiguredVaeDecoder, FluxVAEDecoder), (ConfiguredVaeEncoder, FluxVAEEncoder)],
    ids=["decoder", "encoder"],
)
def test_half_of_the_official_vae_has_diffsynths_structure(configured: Any, original: Any) -> None:
    with torch.device("meta"):
        expected = original(use_conv_attention=False)
        ours = configured(vae_config(Z_IMAGE_TURBO))
    assert shapes(ours) == shapes(expected)
    assert (ours.scaling_factor, ours.shift_factor) == (expected.scaling_factor, expected.shift_factor)
    norms = [(m.num_groups, m.eps) for m in expected.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert [(m.num_groups, m.eps) for m in ours.modules() if isinstance(m, torch.nn.GroupNorm)] == norms


@pytest.mark.parametrize("half", VAE_HALVES)
def test_half_of_the_vae_maps_tensors_as_diffsynth_does(half: str) -> None:
    official = tensor_shapes(Z_IMAGE_TURBO)["vae"]
    weights = {name: StoredWeight(NONE, name, shape) for name, shape in official.items()}
    model = VAE_HALVES[half](Component("vae", vae_config(Z_IMAGE_TURBO), weights, (NONE,)))
    assert model is not None
    expected = CONVERTERS[half]({name: name for name in official if name.startswith(half)})
    assert {name: weight.key for name, weight in model.weights.items()} == expected


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
