"""Keys of LoRA files: the layer that a key names, and the role of its tensor.

Trainers and tools differ in prefixes, separators and the names of layers; none of them differs in more than that. So
names are compared without prefixes and with underscores for dots. Knows names; not tensors.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from export.checkpoint.comfyui import COMFYUI_NAMES

# of peft, diffusers, ComfyUI, kohya (one underscore or two), LyCORIS, DiffSynth, DDP, torch.compile; in any nesting
PREFIXES = (
    *("base_model_model_", "model_", "transformer_", "unet_", "diffusion_model_", "pipe_dit_", "module_", "orig_mod_"),
    *("lora_unet_", "lora_transformer_", "lycoris_", "_"),
)
PAIR = {"A": "down", "down": "down", "B": "up", "up": "up"}
KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.(?!bias$)\w+)?(?:\.weight)?"
    r"|[._]lora(?:_linear_layer)?[._](?P<kohya>down|up)\.weight"
    r"|\.(?P<role>alpha|dora_scale|diff|diff_b|w_norm|b_norm|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.\w+)*"
    r")"
)
ROLES = {"w_norm": "diff", "b_norm": "diff_b"}  # LyCORIS's names for norms
# updates that are no sum of the weight and a matrix, or that are made for convolutions
REFUSED = {
    "OFT": r"oft_\w+(\.\w+)*",
    "BOFT": r"boft_\w+(\.\w+)*",
    "IA3": r"on_input|ia3_\w+(\.\w+)*",
    "GLoRA": r"[ab][12]\.weight",
    "a Tucker decomposition": r"hada_t[12]|lokr_t[12]|lora_mid\.weight",
    "a bias inside a LoRA": r"lora_[AB](\.\w+)?\.bias",
    "VeRA": r"vera_\w+(\.\w+)*",
    "a weight of another shape": r"reshape_weight",
}


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Layers of a transformer by every name that LoRA files give them.

    Attributes:
        weights: simplified name -> official names of its layers; three for queries, keys and values in one.
    """

    layers: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(weights: Iterable[str]) -> "LayerNames":
        """Make the names of layers from the official names of their weights."""
        layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
        found: dict[str, tuple[str, ...]] = {}
        for layer in layers:
            comfy = f"{layer}."
            for comfy_name, official in COMFYUI_NAMES:
                comfy = comfy.replace(official, comfy_name)
            names = [layer, comfy.removesuffix(".")]
            if layer.endswith(".to_out.0"):
                names.append(layer.removesuffix(".0"))
            found |= {_simplified(name): (layer,) for name in names}
            if layer.endswith(".to_q"):
                attention = layer.removesuffix(".to_q")
                fused = tuple(f"{attention}.to_{part}" for part in "qkv")
                found |= {_simplified(f"{attention}.{name}"): fused for name in ("qkv", "to_qkv")}
        return LayerNames(found)

    def find(self, name: str) -> tuple[str, ...] | None:
        """Return the official names of a layer, or None if it is no layer of the transformer."""
        name = _simplified(name)
        while name not in self.layers:
            prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
            if prefix is None:
                return None
            name = name.removeprefix(prefix)
        return self.layers[name]


def split(key: str) -> tuple[str, str] | None:
    """Return the layer of a key as the file names it, and the role of its tensor; None for a key of another form."""
    match = KEY.fullmatch(key)
    if match is None:
        return None
    role = PAIR.get(match["peft"] or match["kohya"]) or ("dora_scale" if match["magnitude"] else match["role"])
    return match["layer"], ROLES.get(role, role)


def refused_kind(key: str) -> str | None:
    """Return the name of the method that a key belongs to, if it cannot be merged exactly."""
    return next((kind for kind, form in REFUSED.items() if re.fullmatch(rf".+\.(?:{form})", key)), None)


def _simplified(name: str) -> str:
    return name.replace(".", "_").replace("_processor_", "_")
