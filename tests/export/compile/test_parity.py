"""The exported graphs, run by ONNX Runtime, against DiffSynth's own modules.

The metric is the relative L2 error in FP32. It measures 4e-7 to 4e-6, which is rounding; 1e-5 is asserted. The VAE
decoder returns levels: 1e-3 is asserted, and no value is more than one level away.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffsynth.pipelines.z_image import model_fn_z_image_turbo
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.source import random_components
from benchmarks.verify import plans_of
from engine.errors import BuildError
from engine.plan.directory import read
from engine.plan.manifest import GraphName
from export.checkpoint import models
from export.checkpoint.files import Checkpoint, open_checkpoint
from export.compile import parity, probes, segments
from export.compile.layer_stream import LayerStream
from export.compile.parity import Array, Arrays, Reference, relative_l2, sample_inputs
from export.compile.probes import Verification, needed_bytes, require_memory
from export.compile.profiles import parse_profile
from export.compile.rounding import Rounding
from nano.layout import Z_IMAGE_TURBO

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
    return 1e-3 if graph == "vae_decoder" else TOLERANCE  # a level is 1e-2 of a typical one


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
@pytest.mark.parametrize("graph", ["denoiser", "vae_decoder", "vae_encoder"])
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
    text_encoder = models.text_encoder(opened.text_encoder).load()
    models.make_rotary_buffers(text_encoder)
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
    "vae_encoder": "vae.blocks.4.conv1.weight",
}


@pytest.fixture(scope="module")
def verification(opened: Checkpoint, plan_directory: Path) -> Verification:
    manifest = read(plan_directory)
    made = Verification(opened, manifest)
    made.check("prompt_encoder", manifest.graphs["prompt_encoder"], plan_directory)  # its outputs are denoiser's inputs
    return made


@pytest.mark.parametrize("graph", GRAPHS)
def test_intact_graph_passes_the_check(plan_directory: Path, verification: Verification, graph: GraphName) -> None:
    known = read(plan_directory).graphs[graph]
    checked = verification.check(graph, known, plan_directory)
    assert checked.parity is not None and checked.parity <= tolerance(graph)
    assert (checked.parity > 0) == (graph != "blend"), "the blend does in FP32 what the reference does"
    assert [probe.name for probe in checked.probes] == [probe.name for probe in known.probes]
    assert len(checked.probes) >= 4
    for again, built in zip(checked.probes, known.probes, strict=True):
        assert (again.inputs.keys(), again.outputs.keys()) == (built.inputs.keys(), built.outputs.keys())
        for output, expected in again.outputs.items():
            least = 0 if graph in ("guidance", "blend", "vae_decoder") else 1e-9  # no products, or less than a level
            assert least <= expected.rounding < 1e-5 and expected.rounding <= expected.row_rounding, "2^-13 of FP16's"
            assert expected.rounding == pytest.approx(built.outputs[output].rounding, rel=0.5)


@pytest.mark.parametrize("graph", WEIGHT)
@pytest.mark.parametrize("noise", [0.05, float("nan")])
def test_altered_weight_fails_the_check(
    plan_directory: Path, tmp_path: Path, verification: Verification, graph: GraphName, noise: float
) -> None:
    for file in plan_directory.glob(f"{graph}.onnx*"):
        shutil.copy(file, tmp_path)
    disturb(tmp_path / f"{graph}.onnx", WEIGHT[graph], noise)
    with pytest.raises(BuildError, match=rf"{graph}, probe 'smallest': relative L2 .* expected of fp32"):
        verification.check(graph, read(plan_directory).graphs[graph], tmp_path)


@pytest.mark.parametrize("graph", WEIGHT)
def test_graph_in_segments_gives_what_the_whole_gives(plan_directory: Path, run: Run, graph: GraphName) -> None:
    """Bit for bit, wherever the cuts are; a usual session, which repacks weights, adds up in another order."""
    path, config = plan_directory / f"{graph}.onnx", reference_config(plan_directory)
    batches = [
        sample_inputs(graph, config, height=16, width=16, tokens=20, batch=1),
        sample_inputs(graph, config, height=18, width=22, tokens=40, batch=2),
    ]
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    counts = [len(segments.segments(model, limit)) for limit in (1 << 18, 1 << 30)]
    assert counts[0] >= 10 and counts[1] == 1
    cut, whole = (segments.run(path, batches, limit=limit) for limit in (1 << 18, 1 << 30))
    for batch, in_segments, at_once in zip(batches, cut, whole, strict=True):
        assert in_segments.keys() == at_once.keys()
        assert all(np.array_equal(found, at_once[name]) for name, found in in_segments.items())
        found, *_ = in_segments.values()
        assert relative_l2(found, run(graph, batch)) <= (1e-3 if graph == "vae_decoder" else 1e-6)


def reference_config(plan_directory: Path) -> dict[str, Any]:
    model = read(plan_directory).model
    rope = model.rope
    return {
        "in_channels": model.latent_channels,
        "dim": model.prompt_embeds_dim,
        "rope_theta": rope.theta,
        "axes_dims": rope.axes_dims,
        "axes_lens": rope.axes_lens,
    }


def test_layers_in_step_give_what_whole_models_give(opened: Checkpoint, reference: Reference) -> None:
    """Bit for bit, also when several passes of different sizes go through the layers at once, one of them rounded."""
    dit = models.transformer(opened.transformer).load()
    models.embed_timesteps_in_fp32(dit)
    batches = [
        sample_inputs("denoiser", reference.config, height=h, width=w, tokens=20, batch=batch, seed=h)
        for h, w, batch in ((8, 8, 2), (10, 14, 1))
    ]
    rounded, *exact = reference.run("denoiser", [batches[0], *batches], [Rounding("fp16"), None, None])
    for inputs, outputs in zip(batches, exact, strict=True):
        latents, sigma, after, embeds = (
            torch.from_numpy(inputs[k]) for k in ("latents", "sigma", "sigma_next", "prompt_embeds")
        )
        for index, found in enumerate(outputs["latents_next"]):
            with torch.no_grad():
                flow = parity.velocity(dit, latents[index][None], sigma[index][None], embeds[index])
            assert np.array_equal(found, (latents[index] + (after - sigma)[index] * flow[0]).numpy())
    assert 1e-5 < relative_l2(rounded["latents_next"], exact[0]["latents_next"]) < 1e-2


def test_one_layer_at_a_time_is_in_memory(opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's weights are read once for several passes, and are gone when the next layer's are there."""
    reference = Reference(opened)
    loaded, most = [], []
    exchange = LayerStream._exchange

    def record(stream: LayerStream) -> None:
        exchange(stream)
        assert stream._loaded is not None
        loaded.append(stream._loaded.name)
        layers = [*reference._dit.layers, *reference._dit.noise_refiner, *reference._dit.context_refiner]
        most.append(sum(not any(p.is_meta for p in layer.parameters()) for layer in layers))

    monkeypatch.setattr(LayerStream, "_exchange", record)
    batch = sample_inputs("denoiser", reference.config, height=8, width=8, tokens=20, batch=2)
    reference.run("denoiser", [batch, batch])
    config = opened.transformer.config
    assert len(loaded) == len(set(loaded)) == config["n_layers"] + config["n_refiner_layers"]
    assert set(most) == {1}


def test_passes_of_one_graph_leave_the_models_as_they_were(reference: Reference) -> None:
    """DiffSynth's context path is taken out of the model while denoiser's passes run, in several threads."""
    prompt = sample_inputs("prompt_encoder", reference.config, height=8, width=8, tokens=20, batch=1)
    step = sample_inputs("denoiser", reference.config, height=8, width=8, tokens=20, batch=2)
    before = reference.prompt_encoder(prompt)
    reference.run("denoiser", [step, step])
    assert np.array_equal(reference.prompt_encoder(prompt), before)


def test_error_in_one_pass_ends_all(reference: Reference) -> None:
    batch = sample_inputs("denoiser", reference.config, height=8, width=8, tokens=20, batch=2)
    wrong = batch | {"prompt_embeds": batch["prompt_embeds"][..., :-1]}
    with pytest.raises(RuntimeError, match="shape mismatch"):
        reference.run("denoiser", [batch, wrong, batch])
    assert reference.run("denoiser", [batch])[0]["latents_next"].shape == batch["latents"].shape


def test_passes_of_the_vae_run_one_after_the_other(opened: Checkpoint) -> None:
    """Its activations are large, and passes that wait for each other would all hold theirs."""
    reference, passes = Reference(opened), list[int]()
    for module in reference._vae.modules():
        module.register_forward_hook(lambda *_: passes.append(threading.get_ident()))
    latents = sample_inputs("vae_decoder", reference.config, height=8, width=8, tokens=20, batch=1)
    reference.run("vae_decoder", [latents] * 3)
    each = len(passes) // 3
    assert each > 0 and [len(set(passes[start : start + each])) for start in range(0, 3 * each, each)] == [1, 1, 1]


def test_build_without_memory_for_the_comparison_is_refused(
    opened: Checkpoint, plan_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = read(plan_directory)
    require_memory(opened, plans)
    few = SimpleNamespace(available=1 << 30)
    monkeypatch.setattr(probes.psutil, "virtual_memory", lambda: few)
    with pytest.raises(BuildError, match=r"needs up to 3\.\d GB of memory, 1\.1 GB are free; .* --no-verify"):
        require_memory(opened, plans)


def test_full_size_comparison_fits_16_gb() -> None:
    checkpoint = Checkpoint("full", Path(), **random_components(Z_IMAGE_TURBO), scheduler={})
    plans = plans_of(Z_IMAGE_TURBO, "fp16")
    assert needed_bytes(checkpoint, plans) < 7e9
    large_only = replace(plans, profiles=(parse_profile("2048", plans.model),))
    assert needed_bytes(checkpoint, large_only) > 50e9


def disturb(path: Path, name: str, noise: float) -> None:
    """Relative noise on one FP32 tensor in the graph's external data; a mere factor would vanish in the next norm."""
    model = onnx.load(path, load_external_data=False)
    [tensor] = [t for t in model.graph.initializer if t.name == name]
    where = {entry.key: entry.value for entry in tensor.external_data}
    count = int(where["length"]) // 4
    data = np.memmap(path.with_name(where["location"]), np.float32, "r+", int(where["offset"]), (count,))
    data *= 1 + noise * np.random.default_rng(0).standard_normal(count, np.float32)
    data.flush()
