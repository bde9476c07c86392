"""Weights in FP8 or INT8 with scales are the stored tensor times the scale; a doubtful scale is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fakes.single_files import Tensors, comfyui, fp8_scaled
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError
from export.checkpoint.files import open_checkpoint
from export.checkpoint.scaled_weights import read_weights

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
QKV = "model.diffusion_model.layers.0.attention.qkv"
SPELLINGS = ["scale_weight", "weight_scale"]


@pytest.fixture(scope="module")
def single(checkpoint: Path) -> Tensors:
    return comfyui(load_file(checkpoint / TRANSFORMER), "model.diffusion_model.")


def write(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "file.safetensors", metadata)
    return folder / "file.safetensors"


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights([file])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_transformer_in_scaled_fp8_opens_with_weight_times_scale(
    checkpoint: Path, tmp_path: Path, single: Tensors, spelling: str
) -> None:
    stored, values = fp8_scaled(single, spelling)
    assert stored[f"{QKV}.weight"].dtype == torch.float8_e4m3fn
    opened = open_checkpoint(str(checkpoint), write(tmp_path, stored)).transformer.weights
    official = load_file(checkpoint / TRANSFORMER)
    assert opened.keys() == official.keys()
    for part, rows in zip("qkv", values[f"{QKV}.weight"].chunk(3), strict=True):
        assert torch.equal(opened[f"layers.0.attention.to_{part}.weight"].load(), rows)
    w2 = "layers.5.feed_forward.w2.weight"
    assert torch.equal(opened[w2].load(), values[f"model.diffusion_model.{w2}"])
    for name, weight in opened.items():
        loss = (weight.load().float() - official[name].float()).norm() / official[name].float().norm()
        assert loss < 0.04, name  # three bits of mantissa: at most 1/16 per element


def test_text_encoder_folder_in_scaled_fp8_opens(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    file = copy / "text_encoder/model.safetensors"
    stored, values = fp8_scaled(load_file(file), "weight_scale")
    save_file(stored, file)
    opened = open_checkpoint(str(copy)).text_encoder.weights
    assert opened.keys() == values.keys()
    assert all(torch.equal(weight.load(), values[name]) for name, weight in opened.items())


def test_rows_have_scales_of_their_own(tmp_path: Path) -> None:
    weight, scale = torch.randn(6, 4).to(torch.float8_e4m3fn), torch.arange(1.0, 7.0)[:, None]
    [(_, read)] = read_weights([write(tmp_path, {"a.weight": weight, "a.weight_scale": scale})]).items()
    assert torch.equal(read.load(), weight.float() * scale)
    assert torch.equal(read.row_range(2, 4).load(), (weight.float() * scale)[2:4])
    assert torch.equal(read.row_range(2, 3).load(), (weight.float() * scale)[2:3])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scale_of_a_whole_tensor_may_have_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight = torch.randn(6, 4).to(torch.float8_e5m2)
    file = write(tmp_path, {"a.weight": weight, "a.scale_weight": torch.full(shape, 0.25, dtype=torch.bfloat16)})
    assert torch.equal(read_weights([file])["a.weight"].load(), weight.float() * 0.25)


def test_int8_is_scaled_too(tmp_path: Path) -> None:
    weight = torch.randint(-128, 128, (6, 4), dtype=torch.int8)
    file = write(tmp_path, {"a.weight": weight, "a.weight_scale": torch.full((6, 1), 0.5)})
    assert torch.equal(read_weights([file])["a.weight"].load(), weight.float() * 0.5)


def test_fp8_without_scales_keeps_its_values(tmp_path: Path) -> None:
    weight = torch.randn(6, 4).to(torch.float8_e4m3fn)
    assert torch.equal(read_weights([write(tmp_path, {"a.weight": weight})])["a.weight"].load(), weight)


def fp8(**beside: torch.Tensor) -> Tensors:
    return {"a.weight": torch.ones(6, 4).to(torch.float8_e4m3fn)} | {f"a.{key}": value for key, value in beside.items()}


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        (fp8(weight_scale=torch.ones(6)), "one per row, [6, 1]; got [6]"),
        (fp8(weight_scale=torch.ones(4, 1)), "got [4, 1]"),
        (fp8(weight_scale=torch.tensor(float("nan"))), "a.weight_scale in"),
        (fp8(weight_scale=torch.tensor(float("inf"))), "above zero, got inf"),
        (fp8(scale_weight=torch.tensor(0.0)), "above zero, got 0"),
        (fp8(scale_weight=torch.tensor(-1.0)), "above zero, got -1"),
        (fp8(weight_scale=torch.ones(1, dtype=torch.int32)), "floating point numbers, got I32"),
        (fp8(weight_scale=torch.ones(6, 1, dtype=torch.uint8)), "mxfp8"),
        (fp8(weight_scale=torch.ones(()), scale_weight=torch.ones(())), "two scales"),
        ({"a.weight_scale": torch.ones(())}, "the scale of a.weight, which the file does not hold"),
        ({"a.weight": torch.ones(6, 4), "a.weight_scale": torch.ones(())}, "must be FP8 or INT8, got F32"),
        ({"a.weight": torch.ones(6, 4, dtype=torch.int8)}, "its scale is missing"),
        (fp8(comfy_quant=torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)), "scale is missing"),
        ({**fp8(), "scaled_fp8": torch.ones(2)}, "a.weight in"),
        (
            {f"layers.{i}.weight": fp8()["a.weight"] for i in range(2)} | {"layers.0.scale_weight": torch.ones(())},
            "layers.1.weight in",
        ),
        (fp8(weight_scale_2=torch.ones(())), "nvfp4"),
        (fp8(pre_quant_scale=torch.ones(4)), "nvfp4 with AWQ"),
        (fp8(comfy_quant=torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)), "nvfp4"),
        (fp8(comfy_quant=torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)), "mxfp8"),
        (
            fp8(comfy_quant=torch.tensor(list(b'{"format": "int8_tensorwise", "convrot": true}'), dtype=torch.uint8)),
            "int8_tensorwise with convrot",
        ),
        (fp8(comfy_quant=torch.tensor(list(b"{"), dtype=torch.uint8)), "cannot be read"),
        ({"a.weight.absmax": torch.ones(1)}, "bitsandbytes"),
        ({"a.qweight": torch.ones(1), "a.wscales": torch.ones(1)}, "not supported; take the file in BF16"),
    ],
)
def test_doubtful_scale_is_refused_by_name(tmp_path: Path, tensors: Tensors, complaint: str) -> None:
    assert complaint in refusal(write(tmp_path, tensors))


@pytest.mark.parametrize("layer", ["a", "prefix.a"])
def test_formats_in_the_metadata_of_a_file_are_checked(tmp_path: Path, layer: str) -> None:
    tensors = {f"prefix.{key}": tensor for key, tensor in fp8(weight_scale=torch.tensor(0.5)).items()}

    def metadata(name: str) -> dict[str, str]:
        return {"_quantization_metadata": json.dumps({"layers": {layer: {"format": name}}})}

    read = read_weights([write(tmp_path, tensors, metadata("float8_e4m3fn"))])
    assert torch.equal(read["prefix.a.weight"].load(), torch.full((6, 4), 0.5))
    for name in ("nvfp4", "svdquant_w4a4"):
        (folder := tmp_path / name).mkdir()
        assert name in refusal(write(folder, tensors, metadata(name)))
    (folder := tmp_path / "missing").mkdir()
    del tensors["prefix.a.weight_scale"]
    assert "scale is missing" in refusal(write(folder, tensors, metadata("float8_e4m3fn")))


@pytest.mark.parametrize("rows", [(), (0, 4), (7, 4)])
def test_fused_weight_that_is_not_three_is_refused(checkpoint: Path, tmp_path: Path, rows: tuple[int, ...]) -> None:
    tensors = {"x_embedder.weight": torch.ones(2, 2), "layers.0.attention.qkv.weight": torch.ones(rows)}
    with pytest.raises(CheckpointError, match="must hold query, key and value"):
        open_checkpoint(str(checkpoint), write(tmp_path, tensors))
