"""The VAE encoder's graph against diffusers, whose posterior is sampled with the request's generator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from benchmarks.harness.evaluator import StrictEvaluator
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.sampling.noise import randn
from export.checkpoint import models
from export.checkpoint.files import open_checkpoint
from export.compile import onnx_export
from export.compile.parity import Reference, relative_l2, sample_inputs
from export.graphs.vae_encoder import VaeEncoder, exact_group_norm


@pytest.fixture(scope="module")
def pipeline(plan_directory: Path) -> Pipeline:
    return Pipeline.load(plan_directory, RuntimeOptions(threads=1), verify=False)


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(checkpoint / "vae")


@pytest.mark.parametrize(("width", "height"), [(64, 64), (80, 176), (256, 128)])
def test_latents_are_those_that_diffusers_samples(
    pipeline: Pipeline, vae: AutoencoderKL, width: int, height: int
) -> None:
    """Relative L2 in FP32. It measures 4e-7 to 6e-7, which is rounding."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        image = VaeImageProcessor(vae_scale_factor=16).preprocess(Image.fromarray(pixels))
        sampled = vae.encode(image).latent_dist.sample(generator)
    expected = ((sampled - vae.config.shift_factor) * vae.config.scaling_factor).numpy()
    found = pipeline.encode_image(pixels, randn(7, expected.shape))
    assert relative_l2(found, expected) <= 3e-6
    assert relative_l2(pipeline.encode_image(pixels, randn(8, expected.shape)), expected) > 1e-4, "noise counts"


@pytest.mark.parametrize(("log_variance", "deviation"), [(-60.0, np.exp(-15)), (0.0, 1.0), (60.0, np.exp(10))])
def test_deviation_is_bounded_as_in_diffusers(checkpoint: Path, log_variance: float, deviation: float) -> None:
    vae = models.vae_encoder(open_checkpoint(str(checkpoint)).vae)
    assert vae is not None
    vae.load()
    vae.module.conv_out.weight.zero_()
    vae.module.conv_out.bias.copy_(torch.tensor([0.25] * 16 + [log_variance] * 16))
    encoder = VaeEncoder(vae, "fp32")
    noise = torch.full((1, 16, 8, 8), 3.0)
    latents = encoder(torch.zeros((1, 64, 64, 3), dtype=torch.uint8), noise)
    expected = (0.25 + 3.0 * deviation - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    assert latents.mean().item() == pytest.approx(expected, rel=1e-6)


def test_norm_of_a_large_image_is_exact_in_onnx_runtime(tmp_path: Path) -> None:
    """Relative L2 over a group of a million values. It measures 3e-7; ONNX Runtime's InstanceNormalization has 9e-6."""
    layer = torch.nn.GroupNorm(1, 2, eps=1e-6)
    x = torch.from_numpy(np.random.default_rng(0).uniform(0, 1, (1, 2, 512, 1024)).astype(np.float32))
    exact = torch.nn.functional.group_norm(x.double(), 1, layer.weight.double(), layer.bias.double(), layer.eps)

    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return exact_group_norm(x, self.layer)

    torch.onnx.export(Normed().eval(), (x,), tmp_path / "norm.onnx", dynamo=True, verbose=False)
    session = ort.InferenceSession(tmp_path / "norm.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_l2(found, exact.detach().numpy()) < 1e-6


@pytest.mark.slow
def test_bf16_rounds_every_node_and_stays_close_to_fp32(checkpoint: Path, tmp_path: Path) -> None:
    """Relative L2 over latents. It measures 5.2e-3."""
    opened = open_checkpoint(str(checkpoint))
    vae = models.vae_encoder(opened.vae)
    assert vae is not None
    encoder = VaeEncoder(vae, "bf16")
    onnx = onnx_export.trace(encoder)
    assert {node.op_type for node in onnx.graph if "Normalization" in node.op_type} == {"GroupNormalization"}
    onnx_export.attach_weights(onnx, encoder.measure().weights)
    onnx_export.write(onnx, tmp_path / "vae_encoder.onnx")
    inputs = sample_inputs("vae_encoder", opened.transformer.config, height=16, width=16, tokens=1, batch=1)
    latents, *_ = StrictEvaluator(tmp_path / "vae_encoder.onnx").run(inputs)
    assert 1e-3 < relative_l2(latents, Reference(opened).forward("vae_encoder")(inputs)) < 8e-3


@pytest.mark.slow
def test_image_goes_from_levels_to_floats_first(checkpoint: Path) -> None:
    """TensorRT has UINT8 at the edge of a graph only."""
    vae = models.vae_encoder(open_checkpoint(str(checkpoint)).vae)
    assert vae is not None
    graph = onnx_export.trace(VaeEncoder(vae, "bf16")).graph
    [image] = [value for value in graph.inputs if value.name == "init_image"]
    assert [node.op_type for node in image.consumers() if node.op_type != "Shape"] == ["Cast"]


@pytest.mark.slow
def test_encoder_of_another_depth_has_its_own_scale(checkpoint: Path) -> None:
    component = open_checkpoint(str(checkpoint)).vae
    assert VaeEncoder(models.vae_encoder(component), "fp32").vae_scale == 8  # type: ignore[arg-type]
    weights = {name: weight for name, weight in component.weights.items() if "down_blocks.3" not in name}
    weights = {name: weight for name, weight in weights.items() if "down_blocks.2.downsamplers" not in name}
    shallow = replace(component, config=component.config | {"block_out_channels": [16, 32, 64]}, weights=weights)
    encoder = VaeEncoder(models.vae_encoder(shallow), "fp32")  # type: ignore[arg-type]
    assert encoder.vae_scale == 4
    assert [len(value.shape) for value in onnx_export.trace(encoder).graph.inputs] == [4, 4]
