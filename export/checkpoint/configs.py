"""Configuration files of a checkpoint: reading them, and the keys that they may hold.

Every key is followed by the graphs, or must have one value, or does not change the image. Anything else is refused by
name, because it would silently give another image than diffusers.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from export.checkpoint.file_kinds import describe

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one configuration file. Keys that begin with an underscore are metadata and not listed.

    Attributes:
        class_name: the `_class_name` that the file must have, if it has one.
        followed: keys whose values the graphs follow.
        required: the only value of a key that the graphs support. For False and None, all that Python takes for false.
        every: the only element of the lists that these keys may hold.
        absent: what diffusers takes for a required key that is absent, where that is not the required value.
        unused: keys that do not change the image.
        reason: what the required values have in common, for messages.
    """

    class_name: str | None
    followed: frozenset[str]
    required: Mapping[str, Any]
    unused: frozenset[str] = frozenset()
    every: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEYS = {
    "scheduler": Keys(
        class_name="FlowMatchEulerDiscreteScheduler",
        followed=_names("shift"),
        required={
            "num_train_timesteps": 1000,
            "use_dynamic_shifting": False,
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "invert_sigmas": False,
            "shift_terminal": None,
            "stochastic_sampling": False,
        },
        unused=_names("base_shift max_shift base_image_seq_len max_image_seq_len time_shift_type"),  # dynamic shifting
        reason="the plans have Z-Image's noise levels, which follow shift alone",
    ),
    "transformer": Keys(
        class_name="ZImageTransformer2DModel",
        followed=_names(
            "in_channels dim n_layers n_refiner_layers n_heads n_kv_heads norm_eps cap_feat_dim rope_theta t_scale "
            "axes_dims axes_lens siglip_feat_dim"
        ),
        required={"qk_norm": True, "all_patch_size": [2], "all_f_patch_size": [1]},
    ),
    "text_encoder": Keys(
        class_name=None,
        followed=_names(
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "head_dim rms_norm_eps rope_theta rope_scaling rope_parameters"
        ),
        required={
            "model_type": "qwen3",
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "is_encoder_decoder": False,
        },
        every={"layer_types": "full_attention"},
        unused=_names(
            "architectures attention_dropout bos_token_id eos_token_id pad_token_id initializer_range "
            "max_position_embeddings max_window_layers sliding_window tie_word_embeddings torch_dtype dtype "
            "transformers_version use_cache return_dict output_hidden_states output_attentions chunk_size_feed_forward "
            "id2label label2id problem_type pretraining_tp auto_map do_sample temperature top_k top_p max_length "
            "max_new_tokens repetition_penalty"
        ),
    ),
    "vae": Keys(
        class_name="AutoencoderKL",
        followed=_names(
            "in_channels out_channels block_out_channels layers_per_block latent_channels norm_num_groups sample_size "
            "scaling_factor shift_factor"
        ),
        required={
            "act_fn": "silu",
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "mid_block_add_attention": True,
            "latents_mean": None,
            "latents_std": None,
            "out_channels": 3,
        },
        every={"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"},
        absent={"use_quant_conv": True, "use_post_quant_conv": True},
        unused=_names("force_upcast"),
    ),
}


def check_keys(config: Config, folder: str) -> None:
    """Check every key of the configuration in `folder` of a checkpoint.

    Raises:
        CheckpointError: a key has a value that the graphs do not support, or is not known and not null, false or empty.
    """
    keys, where = KEYS[folder], f"{folder}/{'scheduler_config' if folder == 'scheduler' else 'config'}.json"
    if keys.class_name is not None and config.get("_class_name", keys.class_name) != keys.class_name:
        raise CheckpointError(f"{where}: _class_name must be {keys.class_name}, got {config['_class_name']!r}")
    for key, expected in keys.required.items():
        value = config.get(key, keys.absent.get(key, expected))
        if value != expected and (expected or value):
            reason = f"; {keys.reason}" if keys.reason else ""
            raise CheckpointError(f"{where}: {key} must be {expected!r}, got {value!r}{reason}")
    for key, element in keys.every.items():
        value = config.get(key) or []
        if not isinstance(value, list) or any(one != element for one in value):
            raise CheckpointError(f"{where}: {key} must hold {element!r} only, got {value!r}")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{where} has quantization_config: its weights are quantized, which is not supported; "
            "take the checkpoint in BF16 or FP32"
        )
    known = keys.followed | keys.required.keys() | keys.every.keys() | keys.unused
    unknown = [key for key, value in config.items() if not (key in known or key.startswith("_") or _is_unset(value))]
    if unknown:
        listed = ", ".join(f"{key} {json.dumps(config[key])[:100]}" for key in unknown)
        raise CheckpointError(
            f"{where} has keys that may change the image in a way that is not known: {listed}; "
            "remove those from the file that do not"
        )


def followed(config: Config, folder: str) -> Config:
    """Return the entries that describe the model, without metadata and what does not change the image."""
    keys = KEYS[folder]
    names = keys.followed | keys.required.keys() | keys.every.keys() | keys.unused
    return {key: value for key, value in config.items() if key in names}


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def read_json(path: Path) -> Config:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, or holds no JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = describe(path) if path.is_symlink() and not path.exists() else None
        raise CheckpointError(f"{path} {reason}" if reason else f"cannot read {path}: {error.strerror}") from error
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: it {describe(path) or error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return _Object(value, path)


def positive(config: Config, key: str) -> float:
    """Return a number of a config that must be finite and above zero, else raise CheckpointError."""
    value = config[key]
    if not _is_number(value) or not 0 < value < math.inf:
        raise CheckpointError(f"{_where(config)}{key} must be a number above zero, got {value!r}")
    return float(value)


def finite(config: Config, key: str) -> float:
    """Return a number of a config that must be finite, else raise CheckpointError."""
    value = config[key]
    if not _is_number(value) or not math.isfinite(value):
        raise CheckpointError(f"{_where(config)}{key} must be a finite number, got {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _where(config: Config) -> str:
    return f"{config.path.parent.name}/{config.path.name}: " if isinstance(config, _Object) else ""


class _Object(Config):
    """A JSON object that raises a CheckpointError naming its file when a key is missing."""

    def __init__(self, content: Config, path: Path) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.path} has no {key}")
