"""DiffSynth's modules in the sizes of a checkpoint's configs, and the checkpoint tensor of each parameter.

Modules are on torch's meta device: a model with 6 B parameters uses no memory until `load` is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffsynth.models.z_image_dit import ZImageDiT
from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen3Config, Qwen3Model

from engine.errors import CheckpointError
from export.checkpoint.configs import Config, check_keys, finite, followed, positive
from export.checkpoint.files import Component
from export.checkpoint.vae_modules import (
    ConfiguredVaeDecoder,
    ConfiguredVaeEncoder,
    decoder_names,
    encoder_names,
)
from export.checkpoint.weights import Weight

META = torch.device("meta")
NAMES_SHOWN = 5  # names of missing or extra tensors in a message


@dataclass(frozen=True, slots=True)
class Model:
    """A module on the meta device, its config, and the checkpoint tensor of each of its parameters."""

    module: Any  # DiffSynth's and transformers' modules are untyped
    config: Config
    weights: Mapping[str, Weight]

    def load(self) -> Any:
        """Load all weights into the module in FP32 on the CPU, and return it."""
        state = {name: weight.load().float() for name, weight in self.weights.items()}
        self.module.load_state_dict(state, strict=True, assign=True)
        return self.module


def transformer(component: Component) -> Model:
    """Make the single-stream DiT.

    Raises:
        CheckpointError: the config is not of Z-Image or Z-Image-Turbo, or the weights do not match it.
    """
    config = component.config
    check_keys(config, "transformer")
    if config.get("siglip_feat_dim") is not None:
        raise CheckpointError("transformer/config.json has siglip_feat_dim: Z-Image-Omni is not supported")
    if config["n_kv_heads"] != config["n_heads"]:
        raise CheckpointError(
            f"transformer/config.json: n_kv_heads {config['n_kv_heads']} must equal n_heads {config['n_heads']}"
        )
    for key in ("rope_theta", "t_scale", "norm_eps"):
        positive(config, key)
    with META:
        module = _construct("transformer", ZImageDiT, followed(config, "transformer"))
    return _model(component, module, {name: name for name, _ in module.named_parameters()})


def text_encoder(component: Component) -> Model:
    """Make Qwen3 without its head.

    Raises:
        CheckpointError: the config is not supported, or the weights do not match it.
    """
    config = component.config
    check_keys(config, "text_encoder")
    positive(config, "rms_norm_eps")
    with META:
        module = _construct("text_encoder", lambda **sizes: Qwen3Model(Qwen3Config(**sizes)), config)
    ignored = ("lm_head.",)  # the head, which is tied to the embedding
    return _model(component, module, {name: f"model.{name}" for name, _ in module.named_parameters()}, ignored)


def make_rotary_buffers(text_encoder: Any) -> None:
    """Make the rotary buffers of Qwen3, which are not weights, so that loading weights leaves them on meta."""
    text_encoder.rotary_emb = type(text_encoder.rotary_emb)(config=text_encoder.config)


def embed_timesteps_in_fp32(dit: Any) -> None:
    """Replace the forward pass of DiffSynth's timestep embedder, whose cast to BF16 fails with FP32 weights."""
    embedder = dit.t_embedder
    embedder.forward = lambda t: embedder.mlp(embedder.timestep_embedding(t, embedder.frequency_embedding_size))


def vae_decoder(component: Component) -> Model:
    """Make the decoder of the FLUX-style VAE; the encoder's tensors are ignored.

    Raises:
        CheckpointError: the config is not supported, or the weights do not match it.
    """
    config = component.config
    check_keys(config, "vae")
    for key in ("scaling_factor", "sample_size"):
        positive(config, key)
    finite(config, "shift_factor")
    with META:
        module = _construct("vae", ConfiguredVaeDecoder, {"config": config})
    names = decoder_names((name for name, _ in module.named_parameters()), config)
    return _model(component, module, names, ("encoder.", "quant_conv."))


def vae_encoder(component: Component) -> Model | None:
    """Make the encoder of the VAE, from images [B, 3, H, W] in -1..1 to latents; None if the checkpoint has none.

    Raises:
        CheckpointError: the config is not supported, or the weights do not match it.
    """
    config = component.config
    if not has_vae_encoder(component):
        return None
    check_keys(config, "vae")
    if config["latent_channels"] != 16:
        raise CheckpointError(  # assumed by DiffSynth's forward pass
            f"vae/config.json: latent_channels must be 16, got {config['latent_channels']!r}"
        )
    with META:
        module = _construct("vae", ConfiguredVaeEncoder, {"config": config})
    names = encoder_names((name for name, _ in module.named_parameters()), config)
    return _model(component, module, names, ("decoder.", "quant_conv."))


def has_vae_encoder(component: Component) -> bool:
    """Return True if the checkpoint's VAE has an encoder."""
    return any(key.startswith("encoder.") for key in component.weights)


def require_match(transformer: Component, text_encoder: Component, vae: Component) -> None:
    """Raise CheckpointError if the sizes of the models do not match each other."""
    for model, key, expected in (
        (text_encoder, "hidden_size", "cap_feat_dim"),
        (vae, "latent_channels", "in_channels"),
    ):
        if model.config[key] != transformer.config[expected]:
            raise CheckpointError(
                f"{model.name}/config.json: {key} {model.config[key]} must be the transformer's {expected} "
                f"{transformer.config[expected]}"
            )


def _construct(folder: str, build: Any, arguments: dict[str, Any]) -> Any:
    try:
        return build(**arguments).eval().requires_grad_(False)
    except (
        TypeError,
        KeyError,
        ValueError,
        AssertionError,
        ZeroDivisionError,
        RuntimeError,
        StrictDataclassError,
    ) as error:
        reason = str(error) or "its sizes contradict each other"  # ZImageDiT's assertions have no message
        raise CheckpointError(
            f"{folder}/config.json does not describe a model: {type(error).__name__}: {reason}"
        ) from error


def _model(component: Component, module: Any, names: Mapping[str, str], ignored: tuple[str, ...] = ()) -> Model:
    """Pair parameters with tensors; a missing, extra or misshaped tensor is an error that names it."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    known = {name: component.weights[key] for name, key in names.items() if name in shapes and key in component.weights}
    missing = sorted(names.get(name, name) for name in shapes.keys() - known.keys())
    used = {names[name] for name in known}
    extra = sorted(key for key in component.weights.keys() - used if not key.startswith(ignored))
    misshaped = [
        f"{names[name]} is {list(weight.shape)}, config.json makes it {list(shapes[name])}"
        for name, weight in known.items()
        if weight.shape != shapes[name]
    ]
    problems = [_some(problem, found) for problem, found in (("missing", missing), ("extra", extra)) if found]
    problems += [_some("wrong shape", misshaped)] if misshaped else []
    if problems:
        raise CheckpointError(f"{component.name}/ does not match its config.json: {'; '.join(problems)}")
    return Model(module, component.config, known)


def _some(problem: str, found: list[str]) -> str:
    more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    return f"{problem}: {', '.join(found[:NAMES_SHOWN])}{more}"
