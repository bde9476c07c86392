"""LoHa, LoKr, DoRA and whole differences, merged and prepared, against dense computations; methods that are refused.

The sums are those of LyCORIS 3.4 (`lycoris/modules/{loha,lokr,locon,full}.py`) and ComfyUI (`comfy/weight_adapter/`).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError
from engine.plan import delta as prepared
from export.checkpoint.files import Checkpoint, open_checkpoint
from export.checkpoint.lora import Lora, merge
from export.checkpoint.rotary_layout import half_split, is_rotated
from export.prepared_lora import _deltas
from nano.layout import Z_IMAGE_NANO

PLAIN = "layers.1.feed_forward.w2"
ROTATED = "layers.0.attention.to_k"
FUSED = "layers.2.attention.qkv"
NORM = "layers.0.attention.norm_q"
RANK, ALPHA = 3, 6.0

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint))


def weight(opened: Checkpoint, layer: str) -> torch.Tensor:
    """The weight of a layer; of a fused one, queries, keys and values below each other."""
    layers = [layer.replace("qkv", f"to_{part}") for part in "qkv"] if layer == FUSED else [layer]
    return torch.cat([opened.transformer.weights[f"{name}.weight"].load().float() for name in layers])


def numbers(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape)


def loha(
    weight: torch.Tensor, alpha: float | None, ranks: tuple[int, int] = (RANK, RANK)
) -> tuple[Tensors, torch.Tensor]:
    outputs, inputs = weight.shape
    a1, b1, a2, b2 = (
        numbers(outputs, ranks[0]), numbers(ranks[0], inputs), numbers(outputs, ranks[1]), numbers(ranks[1], inputs)
    )  # fmt: skip
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    scale = 1.0 if alpha is None else alpha / ranks[0]
    return tensors | alpha_of(alpha), scale * (a1 @ b1) * (a2 @ b2)


def lokr(weight: torch.Tensor, first: str, second: str, alpha: float | None) -> tuple[Tensors, torch.Tensor]:
    """`first` and `second`: "whole" or "factors"."""
    outputs, inputs = weight.shape
    shapes = {"w1": (4, 8), "w2": (outputs // 4, inputs // 8)}
    tensors, matrices = {}, {}
    for name, form in (("w1", first), ("w2", second)):
        rows, columns = shapes[name]
        if form == "whole":
            matrices[name] = tensors[f"lokr_{name}"] = numbers(rows, columns)
        else:
            a, b = numbers(rows, RANK), numbers(RANK, columns)
            tensors |= {f"lokr_{name}_a": a, f"lokr_{name}_b": b}
            matrices[name] = a @ b
    delta = torch.einsum("ab,cd->acbd", matrices["w1"], matrices["w2"]).reshape(outputs, inputs)
    scale = 1.0 if alpha is None or (first, second) == ("whole", "whole") else alpha / RANK
    return tensors | alpha_of(alpha), scale * delta


def pair(weight: torch.Tensor, alpha: float | None = None) -> tuple[Tensors, torch.Tensor]:
    up, down = numbers(len(weight), RANK), numbers(RANK, weight.shape[1])
    scale = 1.0 if alpha is None else alpha / RANK
    return {"lora_up.weight": up, "lora_down.weight": down} | alpha_of(alpha), scale * up @ down


def dora(weight: torch.Tensor, over: int, alpha: float | None = None) -> tuple[Tensors, torch.Tensor]:
    """`over`: 1 for a magnitude per output, 0 for one per input."""
    tensors, delta = pair(weight, alpha)
    changed = weight + delta
    magnitude = weight.norm(dim=over, keepdim=True) * (1 + 0.3 * torch.rand(weight.shape[1 - over]).unsqueeze(over))
    return tensors | {"dora_scale": magnitude}, changed / changed.norm(dim=over, keepdim=True) * magnitude - weight


def alpha_of(alpha: float | None) -> Tensors:
    return {} if alpha is None else {"alpha": torch.tensor(alpha)}


METHODS: dict[str, Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]] = {
    "LoRA": lambda weight: pair(weight, ALPHA),
    "LoHa": lambda weight: loha(weight, None),
    "LoHa with alpha": lambda weight: loha(weight, ALPHA),
    "LoHa of two ranks": lambda weight: loha(weight, ALPHA, (2, 5)),
    "LoHa of a high rank": lambda weight: loha(weight, ALPHA, (12, 12)),
    "LoKr": lambda weight: lokr(weight, "whole", "factors", ALPHA),
    "LoKr without alpha": lambda weight: lokr(weight, "whole", "factors", None),
    "LoKr of two products": lambda weight: lokr(weight, "factors", "factors", ALPHA),
    "LoKr of two matrices, whose alpha is any number": lambda weight: lokr(weight, "whole", "whole", 1e10),
    "DoRA by output": lambda weight: dora(weight, 1, ALPHA),
    "DoRA by input": lambda weight: dora(weight, 0),
    "a difference": lambda weight: ({"diff": (whole := numbers(*weight.shape))}, whole),
}


def write(tensors: Tensors, folder: Path, prefix: str) -> Path:
    file = folder / "lora.safetensors"
    save_file({f"{prefix}.{role}": tensor.contiguous() for role, tensor in tensors.items()}, file)
    return file


def dense(deltas: tuple[prepared.Delta, ...], shape: tuple[int, ...], transposed: bool) -> np.ndarray:
    """The sum of prepared deltas, in blocks of rows."""
    total = np.zeros(shape[::-1] if transposed else shape, np.float32)
    for delta in deltas:
        place = delta.place(0, 0, transposed)
        assert place.shape == total.shape
        for first in range(0, len(total), 50):
            rows = slice(first, min(first + 50, len(total)))
            place.write(rows, block := np.empty_like(total[rows]))
            total[rows] += block
    return total.T if transposed else total


@pytest.mark.parametrize("layer", [PLAIN, ROTATED, FUSED])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_merged_and_prepared_as_the_dense_sum(
    opened: Checkpoint, tmp_path: Path, method: str, layer: str
) -> None:
    """Prepared: products keep FP32, other differences are rounded to FP16."""
    torch.manual_seed(len(method))
    own = weight(opened, layer)
    tensors, delta = METHODS[method](own)
    file = write(tensors, tmp_path, "lycoris_" + layer.replace(".", "_"))
    merged = merge(opened, [Lora(file, -0.5)])
    torch.testing.assert_close(weight(merged, layer), own - 0.5 * delta, rtol=1e-5, atol=1e-5)
    head_dim = sum(merged.transformer.config["axes_dims"])
    deltas = _deltas(merged, head_dim)
    assert len(deltas) == (3 if layer == FUSED else 1)
    parts = delta.chunk(len(deltas)) if layer == FUSED else [delta]
    for (name, found), part in zip(
        sorted(deltas.items(), key=lambda item: "qkv".find(item[0][-8])), parts, strict=True
    ):
        ordered = half_split(part, head_dim) if is_rotated(name) else part
        for transposed in (False, True):
            np.testing.assert_allclose(
                dense(found, part.shape, transposed),
                -0.5 * ordered.numpy(),
                rtol=1e-3,
                atol=3e-4 * part.abs().max().item(),
            )


def test_prepared_products_are_smaller_than_the_weight(opened: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = weight(opened, PLAIN)
    for method in ("LoHa", "LoKr", "LoKr of two matrices, whose alpha is any number"):
        merged = merge(opened, [Lora(write(METHODS[method](own)[0], tmp_path, PLAIN))])
        (deltas,) = _deltas(merged, 1).values()
        assert sum(array.nbytes for delta in deltas for array in delta.fields().values()) < own.numel() * 2


def test_several_methods_for_one_weight_add_up(opened: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, total, loras = weight(opened, ROTATED), 0.0, []
    for number, (method, strength) in enumerate(
        {"LoRA": 0.8, "LoKr": 0.5, "DoRA by output": -1.0, "LoHa": 1.0}.items()
    ):
        (tmp_path / str(number)).mkdir()
        tensors, delta = METHODS[method](own)
        loras.append(Lora(write(tensors, tmp_path / str(number), ROTATED), strength))
        total = total + strength * delta
    for ordered in (loras, loras[::-1]):
        torch.testing.assert_close(weight(merge(opened, ordered), ROTATED), own + total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", ["diff", "w_norm"])
def test_difference_of_a_norm_and_of_a_bias_is_merged(opened: Checkpoint, tmp_path: Path, key: str) -> None:
    torch.manual_seed(0)
    biased = "layers.0.adaLN_modulation.0"
    bias = opened.transformer.weights[f"{biased}.bias"].load().float()
    tensors = {f"{NORM}.{key}": numbers(*weight(opened, NORM).shape), f"{biased}.diff_b": numbers(*bias.shape)}
    save_file(tensors, file := tmp_path / "lora.safetensors")
    merged = merge(opened, [Lora(file, 2.0)])
    torch.testing.assert_close(weight(merged, NORM), weight(opened, NORM) + 2 * tensors[f"{NORM}.{key}"])
    torch.testing.assert_close(
        merged.transformer.weights[f"{biased}.bias"].load(), bias + 2 * tensors[f"{biased}.diff_b"]
    )


def test_magnitudes_of_peft_are_those_of_dora(opened: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = weight(opened, PLAIN)
    tensors, delta = dora(own, 1)
    prefix = f"base_model.model.{PLAIN}"
    named = {
        f"{prefix}.lora_A.weight": tensors["lora_down.weight"],
        f"{prefix}.lora_B.weight": tensors["lora_up.weight"],
        f"{prefix}.lora_magnitude_vector.weight": tensors["dora_scale"].flatten(),
    }
    save_file(named, file := tmp_path / "lora.safetensors")
    torch.testing.assert_close(weight(merge(opened, [Lora(file)]), PLAIN), own + delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("oft_blocks", "OFT"),
        ("oft_R.default.weight", "OFT"),
        ("boft_R", "BOFT"),
        ("ia3_l", "IA3"),
        ("on_input", "IA3"),
        ("a1.weight", "GLoRA"),
        ("hada_t1", "a Tucker decomposition"),
        ("lokr_t2", "a Tucker decomposition"),
        ("lora_mid.weight", "a Tucker decomposition"),
        ("lora_B.bias", "a bias inside a LoRA"),
        ("lora_B.default.bias", "a bias inside a LoRA"),
        ("vera_lambda_b", "VeRA"),
    ],
)
def test_method_that_is_no_sum_of_matrices_is_refused_by_name(
    opened: Checkpoint, tmp_path: Path, key: str, kind: str
) -> None:
    file = write({key: torch.ones(2, 2), "lora_down.weight": torch.ones(2, 2)}, tmp_path, PLAIN)
    with pytest.raises(CheckpointError, match=rf"{PLAIN}.{key} is {kind}, which cannot be merged here"):
        merge(opened, [Lora(file)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hada_w2_b": None}, "there is no hada_w2_b"),
        ({"hada_w1_b": torch.zeros(4, 8)}, "hada_w1_a and .*hada_w1_b have different ranks"),
        ({"hada_w2_a": torch.zeros(7, RANK)}, r"there are products \[192, \d+\] and \[7, \d+\]"),
        ({"hada_w1_a": torch.zeros(3)}, "expected matrices"),
        ({"dora_scale": torch.zeros(3)}, r"there are magnitudes \[3\], expected one for each row"),
        ({"hada_w1_a": torch.full((192, RANK), torch.nan)}, "holds NaN or Inf"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    opened: Checkpoint, tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = loha(weight(opened, PLAIN), None)[0] | changes
    file = write({role: tensor for role, tensor in tensors.items() if tensor is not None}, tmp_path, PLAIN)
    with pytest.raises(CheckpointError, match=message):
        merge(opened, [Lora(file)])


def test_lokr_of_another_size_is_refused(opened: Checkpoint, tmp_path: Path) -> None:
    file = write({"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3)}, tmp_path, PLAIN)
    with pytest.raises(CheckpointError, match=r"there is a change of shape \[6, 6\], expected \[192, "):
        merge(opened, [Lora(file)])


@pytest.mark.parametrize("prefix", ["lora_unet__", "lycoris_"])
def test_committed_lora_is_merged_under_flat_names_and_as_loha(opened: Checkpoint, tmp_path: Path, prefix: str) -> None:
    """LoHa of a pair with itself has the squares of its product."""
    pairs = load_file(Z_IMAGE_NANO.with_name("z-image-nano-lora") / "outlines.safetensors")
    plain, squared = {}, {}
    for key, matrix in pairs.items():
        layer, side = key.replace(".default.weight", "").rsplit(".lora_", 1)
        name = prefix + layer.replace(".", "_")
        plain |= {f"{name}.lora_{'down' if side == 'A' else 'up'}.weight": matrix, f"{name}.alpha": torch.tensor(4.0)}
        squared |= {f"{name}.hada_{part}_{'b' if side == 'A' else 'a'}": matrix.clone() for part in ("w1", "w2")}
    for name, tensors in (("plain", plain), ("squared", squared)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    of_plain, of_squared = (
        merge(opened, [Lora(tmp_path / f"{name}.safetensors")]).transformer.weights for name in ("plain", "squared")
    )
    for name, stored in opened.transformer.weights.items():
        own, layer = stored.load().float(), name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" not in pairs:
            assert of_plain[name] is of_squared[name] is stored
            continue
        down, up = (pairs[f"{layer}.lora_{side}.default.weight"].float() for side in "AB")
        torch.testing.assert_close(of_plain[name].load(), own + up @ down)
        torch.testing.assert_close(of_squared[name].load(), own + (up @ down) ** 2)
