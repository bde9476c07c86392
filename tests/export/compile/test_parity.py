"""The exported graphs, run by ONNX Runtime, against DiffSynth's own modules.

The metric is the relative L2 error in FP32. It measures 4e-7 to 4e-6, which is rounding; 1e-5 is asserted. The VAE
decoder returns levels: LEVELS_TOLERANCE is asserted, and no value is more than one level away.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffsynth.pipelines.z_image import model_fn_z_image_turbo
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BuildError
from engine.plan.manifest import GraphName
from export.checkpoint import models
from export.checkpoint.files import Checkpoint, open_checkpoint
from export.compile import parity
from export.compile.parity import LEVELS_TOLERANCE, Array, Arrays, Reference, relative_l2, sample_inputs

TOLERANCE = 1e-5
GRAPHS: tuple[GraphName, ...] = get_args(GraphName)

Run = Callable[[GraphName, Arrays], Array]


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint))


@pytest.fixture(scope="module")
def reference(opened: Checkpoint) -> Reference:
    return Reference(opened)


@pytest.fixture(scope="module")
def run(plan_directory: Path) -> Run:
    sessions = {
        g: ort.InferenceSession(plan_directory / f"{g}.onnx", providers=["CPUExecutionProvider"]) for g in GRAPHS
    }
    return lambda graph, inputs: sessions[graph].run(None, inputs)[0]


def tolerance(graph: GraphName) -> float:
    return LEVELS_TOLERANCE if graph == "vae_decoder" else TOLERANCE


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 300])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_prompt_encoder(run: Run, reference: Reference, tokens: int, batch: int) -> None:
    inputs = sample_inputs(
        "prompt_encoder", reference.config, height=8, width=8, tokens=tokens, batch=batch, seed=batch
    )
    assert relative_l2(run("prompt_encoder", inputs), reference.prompt_encoder(inputs)) <= TOLERANCE


@pytest.mark.parametrize("lengths", [[33, 34, 63, 64], [32, 1, 17]])
def test_batch_of_prompts_of_different_lengths_matches_diffsynth(
    run: Run, reference: Reference, lengths: list[int]
) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (len(lengths), -(-max(lengths) // 32) * 32), np.int64)
    inputs = {"input_ids": ids, "lengths": np.array(lengths, np.int64)}
    assert relative_l2(run("prompt_encoder", inputs), reference.prompt_encoder(inputs)) <= TOLERANCE


SIZES = [
    (32, 32, 300, 4),  # 16 x 16 tokens: nothing to pad
    (8, 128, 31, 2),
    (128, 8, 32, 2),
    (66, 66, 33, 1),  # 528 x 528 pixels: 33 x 33 tokens, 31 rows of padding
    (130, 70, 1, 1),  # 1040 x 560 pixels
    (10, 14, 64, 4),
    (8, 8, 1, 1),
]


@pytest.mark.parametrize(("height", "width", "tokens", "batch"), SIZES)
@pytest.mark.parametrize("graph", ["denoiser", "vae_decoder"])
def test_sizes(
    run: Run, reference: Reference, graph: GraphName, height: int, width: int, tokens: int, batch: int
) -> None:
    inputs = sample_inputs(graph, reference.config, height=height, width=width, tokens=tokens, batch=batch, seed=1)
    found, expected = run(graph, inputs), reference.forward(graph)(inputs)
    assert relative_l2(found, expected) <= tolerance(graph)
    assert graph != "vae_decoder" or np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("graph", GRAPHS)
@given(
    rows=st.integers(4, 12),
    columns=st.integers(4, 12),
    tokens=st.integers(1, 96),
    batch=st.integers(2, 4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=10, deadline=None)
def test_batching_does_not_change_a_sample(
    run: Run, reference: Reference, graph: GraphName, rows: int, columns: int, tokens: int, batch: int, seed: int
) -> None:
    shape = {"height": 2 * rows, "width": 2 * columns, "tokens": tokens, "batch": batch}
    inputs = sample_inputs(graph, reference.config, **shape, seed=seed)
    together = run(graph, inputs)
    for i in range(batch):
        alone = {name: array if name.startswith("rope") else array[i : i + 1] for name, array in inputs.items()}
        assert relative_l2(run(graph, alone)[0], together[i]) <= tolerance(graph)


@pytest.mark.parametrize("tokens", [20, 32, 45])
def test_prompt_encoder_and_denoiser_equal_diffsynths_whole_model(
    run: Run, reference: Reference, opened: Checkpoint, tokens: int
) -> None:
    """The reference, and the graphs, split what DiffSynth does in one call; the split itself changes nothing."""
    dit = models.transformer(opened.transformer).load()
    models.embed_timesteps_in_fp32(dit)
    text_encoder = models.load_text_encoder(opened.text_encoder)
    prompt = sample_inputs("prompt_encoder", reference.config, height=8, width=8, tokens=tokens, batch=1)
    step = sample_inputs("denoiser", reference.config, height=18, width=22, tokens=tokens, batch=1)
    latents, sigma, sigma_next = (torch.from_numpy(step[key]) for key in ("latents", "sigma", "sigma_next"))
    with torch.no_grad():
        ids = torch.from_numpy(prompt["input_ids"][:, :tokens])
        hidden = text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]
        velocity = model_fn_z_image_turbo(dit, latents=latents, timestep=1000 * sigma, prompt_embeds=[hidden[0]])
        expected = (latents + (sigma_next - sigma) * velocity).numpy()
    halves = reference.denoiser(step | {"prompt_embeds": reference.prompt_encoder(prompt)})
    assert relative_l2(halves, expected) <= 1e-7
    graphs = run("denoiser", step | {"prompt_embeds": run("prompt_encoder", prompt)})
    assert relative_l2(graphs, expected) <= TOLERANCE
    assert relative_l2(reference.denoiser(step), expected) > 1e-3, "another prompt is another step"


WEIGHT = {
    "prompt_encoder": "text_encoder.layers.1.self_attn.o_proj.weight",
    "denoiser": "transformer.layers.3.attention.to_q+to_k+to_v.weight",
    "vae_decoder": "vae.blocks.5.conv1.weight",
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_intact_graph_passes_the_parity_check(plan_directory: Path, reference: Reference, graph: GraphName) -> None:
    assert parity.check(graph, plan_directory / f"{graph}.onnx", "fp32", reference) <= tolerance(graph)


@pytest.mark.parametrize("graph", WEIGHT)
@pytest.mark.parametrize("noise", [0.05, float("nan")])
def test_altered_weight_fails_the_parity_check(
    plan_directory: Path, tmp_path: Path, reference: Reference, graph: GraphName, noise: float
) -> None:
    for file in plan_directory.glob(f"{graph}.onnx*"):
        shutil.copy(file, tmp_path)
    disturb(tmp_path / f"{graph}.onnx", WEIGHT[graph], noise)
    with pytest.raises(BuildError, match=rf"{graph} at 16x16 latents, .* relative L2 .* expected of fp32"):
        parity.check(graph, tmp_path / f"{graph}.onnx", "fp32", reference)


def disturb(path: Path, name: str, noise: float) -> None:
    """Relative noise on one FP32 tensor in the graph's external data; a mere factor would vanish in the next norm."""
    model = onnx.load(path, load_external_data=False)
    [tensor] = [t for t in model.graph.initializer if t.name == name]
    where = {entry.key: entry.value for entry in tensor.external_data}
    count = int(where["length"]) // 4
    data = np.memmap(path.with_name(where["location"]), np.float32, "r+", int(where["offset"]), (count,))
    data *= 1 + noise * np.random.default_rng(0).standard_normal(count, np.float32)
    data.flush()
