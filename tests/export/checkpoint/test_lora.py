"""LoRAs in the key formats that are met in the wild: all merge to the same weights; what has no place is named."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import CheckpointError
from export.checkpoint.files import Checkpoint, open_checkpoint
from export.checkpoint.lora import Lora, merge

RANK = 3
ALPHA = 6.0
LAYERS = ("layers.0.attention.to_out.0", "layers.1.feed_forward.w2", "noise_refiner.0.adaLN_modulation.0")
FUSED = tuple(f"layers.0.attention.to_{part}" for part in "qkv")

Tensors = dict[str, torch.Tensor]
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint))


@pytest.fixture(scope="module")
def pairs(opened: Checkpoint) -> Pairs:
    """down and up of each layer, at a scale of 1; Q, K and V share `down`, so that they can be fused."""
    torch.manual_seed(0)
    found: Pairs = {}
    for layer in (*LAYERS, *FUSED):
        outputs, inputs = opened.transformer.weights[f"{layer}.weight"].shape
        down = found[FUSED[0]][0] if layer in FUSED[1:] else torch.randn(RANK, inputs)
        found[layer] = (down, torch.randn(outputs, RANK) / 50)
    return found


def plain(pairs: Pairs, prefix: str = "", infix: str = "") -> Tensors:
    tensors = {}
    for layer, (down, up) in pairs.items():
        tensors |= {f"{prefix}{layer}.lora_A{infix}.weight": down, f"{prefix}{layer}.lora_B{infix}.weight": up}
    return tensors


def kohya(pairs: Pairs, prefix: str = "lora_unet_") -> Tensors:
    tensors = {}
    for layer, (down, up) in pairs.items():
        name = prefix + layer.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up * RANK / ALPHA}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


def dotted(pairs: Pairs, prefix: str = "") -> Tensors:
    tensors = {}
    for layer, (down, up) in pairs.items():
        tensors |= {f"{prefix}{layer}.lora.down.weight": down, f"{prefix}{layer}.lora.up.weight": up}
    return tensors


def fuse(pairs: Pairs) -> Pairs:
    """Under ComfyUI's names: Q, K and V in one, `out` for `to_out.0`."""
    rest = {layer.replace("to_out.0", "out"): pair for layer, pair in pairs.items() if layer not in FUSED}
    return rest | {"layers.0.attention.qkv": (pairs[FUSED[0]][0], torch.cat([pairs[layer][1] for layer in FUSED]))}


FORMATS: dict[str, Callable[[Pairs], Tensors]] = {
    "DiffSynth": lambda pairs: plain(pairs, infix=".default"),
    "DiffSynth, older": plain,
    "peft": lambda pairs: plain(pairs, "transformer."),
    "peft, saved whole": lambda pairs: plain(pairs, "base_model.model."),
    "ComfyUI": lambda pairs: plain(fuse(pairs), "diffusion_model."),
    "ai-toolkit": lambda pairs: plain(pairs, "diffusion_model."),
    "kohya": kohya,
    "kohya, fused": lambda pairs: kohya(fuse(pairs)),
    "kohya, two underscores": lambda pairs: kohya(pairs, "lora_unet__"),
    "LyCORIS": lambda pairs: kohya(pairs, "lycoris_"),
    "kohya, dots": lambda pairs: dotted(pairs, "lora_unet_"),
    "dots between words": lambda pairs: {key.replace("to_", "to."): value for key, value in dotted(pairs).items()},
    "DiffSynth, with the pipeline's prefix": lambda pairs: plain(pairs, "pipe.dit."),
    "compiled and distributed": lambda pairs: plain(pairs, "module._orig_mod."),
    "fused and one by one": lambda pairs: plain(fuse(pairs) | pairs, "diffusion_model."),
    "without .weight": lambda pairs: {key.removesuffix(".weight"): value for key, value in plain(pairs).items()},
    "diffusers, older": lambda pairs: {
        key.replace(".to_", ".processor.to_").replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up"): value
        for key, value in plain(pairs, "unet.").items()
    },
}


def write(tensors: Tensors, folder: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "lora.safetensors", metadata)
    return folder / "lora.safetensors"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_every_lora_format_merges_to_the_same_weights(
    opened: Checkpoint, pairs: Pairs, tmp_path: Path, name: str, scale: float
) -> None:
    merged = merge(opened, [Lora(write(FORMATS[name](pairs), tmp_path), scale)]).transformer.weights
    for key, weight in opened.transformer.weights.items():
        if (layer := key.removesuffix(".weight")) in pairs:
            down, up = pairs[layer]
            expected = weight.load().float() + scale * up @ down
            torch.testing.assert_close(merged[key].load(), expected, rtol=1e-6, atol=1e-6)
        else:
            assert merged[key] is weight


def test_two_loras_add_up(opened: Checkpoint, pairs: Pairs, tmp_path: Path) -> None:
    file = write(plain(pairs), tmp_path)
    once, twice = (merge(opened, [Lora(file, 0.5)] * count).transformer.weights for count in (1, 2))
    key = f"{LAYERS[0]}.weight"
    stored = opened.transformer.weights[key].load().float()
    torch.testing.assert_close(twice[key].load() - stored, 2 * (once[key].load() - stored), rtol=1e-5, atol=1e-6)


def said_of_the_whole(pairs: Pairs, folder: Path, where: str, settings: dict[str, object]) -> Path:
    """The file, and what peft or diffusers say of it where they say it."""
    if where == "metadata":
        said = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        return write(plain(pairs), folder, {"lora_adapter_metadata": said})
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return write(plain(pairs, "base_model.model."), folder).rename(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("where", ["adapter_config.json", "metadata"])
@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"lora_alpha": RANK / 2, "r": RANK}, 0.5),
        ({"lora_alpha": RANK, "r": RANK, "use_rslora": True}, RANK**0.5),
        ({"lora_alpha": None}, 1.0),
        ({"r": RANK, "alpha_pattern": {}}, 1.0),
    ],
)
def test_alpha_in_the_metadata_scales_the_whole_file(
    opened: Checkpoint, pairs: Pairs, tmp_path: Path, where: str, settings: dict[str, object], factor: float
) -> None:
    file = said_of_the_whole(pairs, tmp_path, where, settings)
    key = f"{LAYERS[0]}.weight"
    down, up = pairs[LAYERS[0]]
    merged = merge(opened, [Lora(file)]).transformer.weights[key].load()
    expected = opened.transformer.weights[key].load().float() + factor * up @ down
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("where", ["adapter_config.json", "metadata"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": 3, "alpha_pattern": {"to_q": 1}}, "has alpha_pattern, which is not supported"),
        ({"use_dora": True}, "has use_dora, but .* has no magnitudes"),
        ({"peft_type": "LOKR", "alpha": 8}, "has the peft_type LOKR, which is not supported"),
        ({"lora_alpha": "much"}, "does not say how strong the LoRA is"),
        ({"use_rslora": "false"}, "does not say how strong the LoRA is: use_rslora is 'false'"),
    ],
)
def test_unknown_strength_is_refused(
    opened: Checkpoint, pairs: Pairs, tmp_path: Path, where: str, settings: dict[str, object], message: str
) -> None:
    file = said_of_the_whole(pairs, tmp_path, where, settings)
    with pytest.raises(CheckpointError, match=message):
        merge(opened, [Lora(file)])


def test_strength_beside_the_file_changes_the_fingerprint(pairs: Pairs, tmp_path: Path) -> None:
    prints = set()
    for alpha in (1, 2):
        file = said_of_the_whole(pairs, tmp_path, "adapter_config.json", {"lora_alpha": alpha})
        prints.add(Lora(file).fingerprint())
    assert len(prints) == 2


SECOND = [
    "transformer.layers.0.attention.to_out.0.{}",
    "layers.0.attention.out.{}",
    "layers.0.attention.to_out.{}",
    "lora_unet_layers_0_attention_to_out_0.{}",
]


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("is_same", [True, False])
def test_two_names_of_one_weight_are_used_once_or_refused(
    opened: Checkpoint, pairs: Pairs, tmp_path: Path, second: str, is_same: bool
) -> None:
    tensors, (down, up) = plain(pairs), pairs[LAYERS[0]]
    copy = {second.format("lora_A.weight"): 2 * down, second.format("lora_B.weight"): up / 2 if is_same else up}
    file = write(tensors | copy, tmp_path)
    if is_same:
        own = opened.transformer.weights[f"{LAYERS[0]}.weight"].load()
        merged = merge(opened, [Lora(file)]).transformer.weights[f"{LAYERS[0]}.weight"].load()
        torch.testing.assert_close(merged, own.float() + up @ down, rtol=1e-6, atol=1e-6)
    else:
        with pytest.raises(CheckpointError, match=r"are for the same weight, .*, but change it differently"):
            merge(opened, [Lora(file)])


def test_two_adapters_in_one_file_are_refused(opened: Checkpoint, pairs: Pairs, tmp_path: Path) -> None:
    tensors = plain(pairs)
    other = {f"{LAYERS[0]}.lora_A.other.weight": tensors[f"{LAYERS[0]}.lora_A.weight"].clone()}
    with pytest.raises(CheckpointError, match="are for the same weight"):
        merge(opened, [Lora(write(tensors | other, tmp_path))])


def test_fused_pair_that_contradicts_one_of_its_parts_is_refused(
    opened: Checkpoint, pairs: Pairs, tmp_path: Path
) -> None:
    fused = {layer: pair for layer, pair in fuse(pairs).items() if layer.endswith("qkv")}
    down, up = pairs[FUSED[1]]
    file = write(plain(fused) | plain({FUSED[1]: (down, -up)}), tmp_path)
    with pytest.raises(CheckpointError, match=r"attention\.to_k\.weight, but change it differently"):
        merge(opened, [Lora(file)])


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("layers.99.attention.to_q.lora_A.weight", (3, 192)),
        ("text_encoder.layers.0.self_attn.q_proj.lora_A.weight", (3, 192)),
        ("layers.99.attention.to_q.lora_magnitude_vector", (192,)),
        ("lycoris_layers_0_attention_to_x.lokr_w1", (4, 4)),
        ("layers.0.attention.to_q.difference", (192, 192)),
        ("lora_unet_layers_0_attention_to_x.lora_down.weight", (3, 192)),
    ],
)
def test_key_without_a_matching_layer_is_named(
    opened: Checkpoint, pairs: Pairs, tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    file = write(plain(pairs) | {key: torch.zeros(shape)}, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        merge(opened, [Lora(file)])
    assert f"{file}: 1 of its keys match no layer of this transformer: {key}" in str(caught.value)


def test_half_a_pair_is_refused(opened: Checkpoint, pairs: Pairs, tmp_path: Path) -> None:
    tensors = plain(pairs)
    del tensors[f"{LAYERS[0]}.lora_B.weight"]
    with pytest.raises(CheckpointError, match=f"for {LAYERS[0]}.weight there is no up matrix"):
        merge(opened, [Lora(write(tensors, tmp_path))])


def test_lora_of_another_model_is_refused(opened: Checkpoint, pairs: Pairs, tmp_path: Path) -> None:
    tensors = plain(pairs) | {f"{LAYERS[0]}.lora_A.weight": torch.zeros(RANK, 7)}
    with pytest.raises(CheckpointError, match=r"matrices \[3, 7\] and \[192, 3\], expected \[rank, 192\] and"):
        merge(opened, [Lora(write(tensors, tmp_path))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_A": torch.zeros(0, 192), "lora_B": torch.zeros(192, 0)}, r"matrices \[0, 192\] and \[192, 0\]"),
        ({"lora_A": torch.tensor(1.0)}, r"matrices \[\] and"),
        ({"lora_A": torch.zeros(RANK, 192, dtype=torch.int8)}, "must hold floating point numbers, got torch.int8"),
        ({"lora_B": torch.full((192, RANK), torch.nan)}, "holds NaN or Inf"),
        ({"alpha": torch.ones(2)}, r"must be one number, got torch.float32 of shape \[2\]"),
        ({"alpha": torch.tensor(torch.inf)}, "alpha must be finite, got inf"),
    ],
)
def test_tensors_that_are_no_matrices_are_refused(
    opened: Checkpoint, pairs: Pairs, tmp_path: Path, changes: Tensors, message: str
) -> None:
    names = {part: f"{LAYERS[0]}.{part}" + ("" if part == "alpha" else ".weight") for part in changes}
    tensors = plain(pairs) | {names[part]: tensor for part, tensor in changes.items()}
    with pytest.raises(CheckpointError, match=message):
        merge(opened, [Lora(write(tensors, tmp_path))])


def test_file_without_a_lora_is_refused(opened: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no LoRA"):
        merge(opened, [Lora(write({}, tmp_path))])


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_bad_scale_is_refused(opened: Checkpoint, pairs: Pairs, tmp_path: Path, scale: float) -> None:
    with pytest.raises(CheckpointError, match="its strength must be finite"):
        merge(opened, [Lora(write(plain(pairs), tmp_path), scale)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", Lora(Path("a.safetensors"))),
        ("a.safetensors:0.8", Lora(Path("a.safetensors"), 0.8)),
        ("a.safetensors:-1", Lora(Path("a.safetensors"), -1.0)),
        ("C:\\loras\\a.safetensors", Lora(Path("C:\\loras\\a.safetensors"))),
        (":0.5", Lora(Path(":0.5"))),
    ],
)
def test_lora_argument_is_a_file_and_a_scale(text: str, expected: Lora) -> None:
    assert Lora.parse(text) == expected
