"""LoRAs in and out of refittable plans, on ONNX Runtime."""

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnx.numpy_helper
import psutil
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmarks.harness.pixels import psnr
from engine.errors import InvalidRequest, LoraMismatch, PlanCorrupt
from engine.pipeline import Pipeline
from engine.plan.directory import read
from engine.plan.lora import PreparedLora, Scaling, base_weight
from engine.plan.manifest import MergedLora
from engine.request import ImageRequest, LoraChoice
from engine.sampling.schedule import sigmas
from engine.sampling.tokenizer import PromptTokenizer
from engine.scheduler.events import Denoised, Failed
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_registry import LoraRegistry
from engine.size import Size
from export.build import BuildOptions
from export.checkpoint.files import open_checkpoint
from export.checkpoint.lora import Lora, merge
from export.checkpoint.rotary_layout import half_split, is_rotated
from export.cli import main as build_engines_command
from export.lora_cli import main
from export.precision.bounds import LIMIT
from export.prepared_lora import prepare
from export.progress import BuildProgress
from nano.layout import Z_IMAGE_NANO
from server.lora_folder import find

pytestmark = pytest.mark.slow

RANK = 4
# large enough for FP16 to need other powers of two: of values, of the gated product, of the prompt's half
STRENGTH = {
    "layers.0.attention.to_q": 0.02,
    "layers.1.attention.to_v": 400.0,
    "layers.2.feed_forward.w3": 900.0,
    "layers.3.adaLN_modulation.0": 0.02,
    "context_refiner.0.attention.to_out.0": 300.0,
}
REQUEST = ImageRequest("a large red circle", 128, 96, seed=3)


@pytest.fixture(scope="module")
def plans(refittable: Path) -> Path:
    return (refittable / "current").resolve()


@pytest.fixture(scope="module")
def lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Lora:
    torch.manual_seed(0)
    weights, tensors = open_checkpoint(str(checkpoint)).transformer.weights, {}
    for layer, strength in STRENGTH.items():
        outputs, inputs = weights[f"{layer}.weight"].shape
        tensors[f"{layer}.lora_A.weight"] = torch.randn(RANK, inputs) / inputs**0.5
        tensors[f"{layer}.lora_B.weight"] = strength * torch.randn(outputs, RANK)
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(tensors, file)
    return Lora(file, 0.5)


@pytest.fixture(scope="module")
def prepared(plans: Path, lora: Lora, checkpoint: Path) -> PreparedLora:
    file = lora.file.with_name("prepared.safetensors")
    convert(lora, checkpoint, plans, file)
    return PreparedLora.read(file)


def convert(lora: Lora, checkpoint: Path, plans: Path, output: Path) -> None:
    main([f"{lora.file}:{lora.scale}", "--model", str(checkpoint), "--engines", str(plans), "-o", str(output)])


def scaling_of(prepared: PreparedLora, strength: float) -> Scaling:
    (found,) = [scaling for scaling in prepared.about.scalings if scaling.strength == strength]
    return found


def latents(pipeline: Pipeline, plans: Path) -> np.ndarray:
    """The denoiser's result, which the VAE decodes."""
    prompt = PromptTokenizer(plans, pipeline.manifest.model.prompt)(REQUEST.prompt)
    prompt_embeds = pipeline.encode_prompt([prompt])
    noise = pipeline.noise(REQUEST.seed, Size(128, 96))
    return pipeline.denoise(prompt_embeds, noise, sigmas(4, 3.0)).copy()


def test_explain_prints_every_bound(plans: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plans that were built before are explained too."""
    arguments = ("--flavor", "onnx", "--refittable", "--no-verify", "--explain")
    build_engines_command(["--model", str(checkpoint), "--output", str(plans.parent), *arguments])
    said = capsys.readouterr().err
    products = [product for graph in read(plans).graphs.values() for product in graph.products]
    assert len(products) > 40
    for product in products:
        assert product.name.removesuffix(".weight") in said
        assert product.input_bound * 2.0**-product.input_shift <= LIMIT
        assert product.output_bound * 2.0**-product.output_shift <= LIMIT


def test_strong_lora_changes_the_powers_of_two(plans: Path, prepared: PreparedLora) -> None:
    """Exponents change for the norms before a branch, eps for those that end it."""
    own = {weight.name: weight.exponent for graph in read(plans).graphs.values() for weight in graph.refittable}
    scaling = scaling_of(prepared, 1.0)
    changed = {name for name, exponent in scaling.exponents.items() if exponent != own[name]}
    assert {name.rsplit(".", 2)[-2] for name in changed} >= {"attention_norm1", "ffn_norm1"}
    eps = {name: value for name, value in scaling.scales.items() if name.endswith(".eps")}
    assert len(set(eps.values())) > 2, "the LoRA is too weak to test this"


def test_refit_and_undo_restore_images_bit_for_bit(plans: Path, prepared: PreparedLora) -> None:
    pipeline = Pipeline.load(plans)
    own, own_latents = pipeline.generate(REQUEST).pixels, latents(pipeline, plans)
    for _ in range(2):
        pipeline.refit(prepared)
        swapped = pipeline.generate(REQUEST).pixels
        assert psnr(swapped, own) < 30
        pipeline.refit(prepared)
        assert np.array_equal(pipeline.generate(REQUEST).pixels, swapped)
        pipeline.refit(None)
        assert np.array_equal(latents(pipeline, plans), own_latents)
        assert np.array_equal(pipeline.generate(REQUEST).pixels, own)


def test_refitted_plans_generate_the_image_of_merged_plans(
    plans: Path,
    prepared: PreparedLora,
    lora: Lora,
    checkpoint: Path,
    tmp_path: Path,
    build_plans: Callable[..., Path],
) -> None:
    """Not bit for bit: merged in FP32 and rounded once there, added to rounded weights here."""
    pipeline = Pipeline.load(plans)
    pipeline.refit(prepared)
    options = BuildOptions(str(checkpoint), tmp_path, flavor="onnx", loras=(lora,), verify=False)
    merged_plans = build_plans(options, BuildProgress(Console(stderr=True)))
    merged = Pipeline.load(merged_plans)
    assert [entry.file for entry in merged.manifest.model.loras] == [lora.file.name]
    initializers = onnx.load(merged_plans / "denoiser.onnx").graph.initializer
    in_file = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    for name, weight in prepared.weights(read(plans).graphs["denoiser"], plans):
        np.testing.assert_allclose(weight, in_file[name], rtol=2e-3, atol=1e-3 * np.abs(weight).max())
    ratio = psnr(pipeline.generate(REQUEST).pixels, merged.generate(REQUEST).pixels)
    print(f"{ratio:.1f} dB")
    assert ratio > 35


@pytest.mark.parametrize("strength", [0.5, -1.5, 3.0])
def test_lora_at_a_strength_has_the_weights_of_the_lora_scaled_before(
    plans: Path, prepared: PreparedLora, lora: Lora, checkpoint: Path, strength: float
) -> None:
    """Up to the powers of two, of which those of a larger strength may serve. The plans' own weights come back."""
    merged = merge(open_checkpoint(str(checkpoint)), [replace(lora, scale=strength * lora.scale)]).transformer.weights
    at, head_dim, compared = prepared.at(strength), sum(read(plans).model.rope.axes_dims), 0
    for graph in read(plans).graphs.values():
        found = dict(at.weights(graph, plans))
        for weight in graph.refittable:
            if not any(part in prepared.deltas for part in weight.parts):
                continue
            value = found[weight.name].astype(np.float32) * 2.0 ** -at._scaling.exponents[weight.name]
            rows = np.split(value.T if weight.transposed else value, len(weight.parts))
            for part, own in zip(weight.parts, rows, strict=True):
                expected = merged[part.removeprefix("transformer.")].load().float()
                ordered = half_split(expected, head_dim) if is_rotated(part) else expected
                largest = expected.abs().max().item()
                np.testing.assert_allclose(own, ordered.numpy(), rtol=2e-3, atol=1e-3 * largest)
                compared += part in prepared.deltas
    assert compared == len(STRENGTH)
    pipeline = Pipeline.load(plans, verify=False)
    own = pipeline.generate(SMALL).pixels
    pipeline.refit(at)
    assert not np.array_equal(pipeline.generate(SMALL).pixels, own)
    pipeline.refit(prepared.at(0.0))
    assert np.array_equal(pipeline.generate(SMALL).pixels, own)


def test_strength_beyond_fp16_is_refused_by_the_loop(plans: Path, prepared: PreparedLora, tmp_path: Path) -> None:
    usual = [scaling for scaling in prepared.about.scalings if scaling.strength == 1]
    weak = replace(prepared, about=replace(prepared.about, scalings=tuple(usual)))
    (tmp_path / "weak.lora").write_bytes(weak.encode())
    pipeline = Pipeline.load(plans, verify=False)
    loras = LoraRegistry(pipeline, {"weak": tmp_path / "weak.lora"})
    assert loras.check() == ()
    loop = EngineLoop(pipeline, loras=loras)
    loop.tokenize(replace(SMALL, lora="weak", lora_strength=0.7))
    for strength in (1.1, -0.5):
        with pytest.raises(InvalidRequest, match=r"lora_strength must be between 0 and 1 .* 'weak'") as caught:
            loop.tokenize(replace(SMALL, lora="weak", lora_strength=strength))
        assert caught.value.param == "lora_strength"


def test_weights_that_change_are_known_before_they_are_merged(plans: Path, prepared: PreparedLora) -> None:
    for graph in read(plans).graphs.values():
        weights = dict(prepared.weights(graph, plans))
        assert weights.keys() == prepared.changes(graph)
        own = {weight.name: np.array(base_weight(graph, weight, plans)) for weight in graph.refittable}
        assert all(
            weight.shape == own[name].shape and weight.dtype == own[name].dtype for name, weight in weights.items()
        )
        scales = scaling_of(prepared, 1.0).scales
        assert all(not np.array_equal(weights[name], own[name]) for name in weights if name not in scales)


def test_manifest_names_the_parts_of_each_weight(plans: Path, checkpoint: Path) -> None:
    graph = read(plans).graphs["denoiser"]
    weights = {weight.name: weight for weight in graph.refittable}
    joined = weights["transformer.layers.0.attention.to_q+to_k+to_v.weight"]
    assert joined.parts == tuple(f"transformer.layers.0.attention.to_{part}.weight" for part in "qkv")
    dim = joined.shape[0]
    assert (joined.shape, joined.transposed, joined.dtype) == ((dim, 3 * dim), True, "float16")
    official = open_checkpoint(str(checkpoint)).transformer.weights
    query, key, value = (official[part.removeprefix("transformer.")].load() for part in joined.parts)
    head_dim = sum(read(plans).model.rope.axes_dims)
    expected = torch.cat([half_split(query, head_dim), half_split(key, head_dim), value]).T
    np.testing.assert_array_equal(base_weight(graph, joined, plans), expected.half().numpy())


def test_tensorrt_finds_every_weight_by_its_name(plans: Path) -> None:
    """Building such plans takes a GPU; parsing them does not."""
    trt = pytest.importorskip("tensorrt_rtx")
    for graph in read(plans).graphs.values():
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(network, builder.logger).parse_from_file(str(plans / graph.file))
        assert all(network.mark_weights_refittable(weight.name) for weight in graph.refittable)


def test_refit_of_plans_that_are_not_refittable_is_refused(engines: Path, prepared: PreparedLora) -> None:
    with pytest.raises(LoraMismatch, match="build them with --refittable"):
        Pipeline.load(engines).refit(prepared)


def test_unprepared_lora_file_is_refused(lora: Lora) -> None:
    with pytest.raises(LoraMismatch, match="is not prepared for plans; prepare it with: zimage-lora"):
        PreparedLora.read(lora.file)
    halves = {name: tensor.bfloat16() for name, tensor in load_file(lora.file).items()}
    save_file(halves, file := lora.file.with_name("bf16.safetensors"))
    with pytest.raises(LoraMismatch, match="is not prepared for plans"):
        PreparedLora.read(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "0" * 64}, "prepared for other weights"),
        ({"precisions": {"denoiser": "bf16"}}, "prepared for .*, the plans have"),
        ({"scalings": (Scaling(1.0, {}),)}, "prepared for plans of another version of zimage-trt"),
    ],
)
def test_lora_prepared_for_other_plans_is_refused(
    plans: Path, prepared: PreparedLora, change: dict[str, object], message: str
) -> None:
    pipeline = Pipeline.load(plans)
    own = pipeline.generate(REQUEST).pixels
    with pytest.raises(LoraMismatch, match=message):
        pipeline.refit(replace(prepared, about=replace(prepared.about, **change)))
    assert np.array_equal(pipeline.generate(REQUEST).pixels, own)


def test_plans_with_a_merged_lora_refuse_another(
    plans: Path, prepared: PreparedLora, lora: Lora, checkpoint: Path
) -> None:
    """The LoRA's powers of two would not fit the sum."""
    manifest = read(plans)
    both = replace(manifest, model=replace(manifest.model, loras=(MergedLora("lora", "", 1.0),)))
    with pytest.raises(LoraMismatch, match="have a LoRA merged"):
        prepared.require_match(both)
    with pytest.raises(LoraMismatch, match="have a LoRA merged"):
        prepare(open_checkpoint(str(checkpoint)), [lora], both)


def test_lora_beyond_fp16_is_refused(plans: Path, lora: Lora, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"with the LoRA, .*FP16.*; give it a smaller strength"):
        convert(Lora(lora.file, 1e6), checkpoint, plans, tmp_path / "out.lora")
    assert not list(tmp_path.iterdir())


def test_output_that_is_the_lora_itself_is_refused(plans: Path, lora: Lora, checkpoint: Path) -> None:
    before = lora.file.read_bytes()
    with pytest.raises(SystemExit, match="is the LoRA itself"):
        convert(lora, checkpoint, plans, lora.file)
    assert lora.file.read_bytes() == before


def test_prepared_lora_is_not_prepared_again(
    plans: Path, prepared: PreparedLora, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.lora").write_bytes(prepared.encode())
    with pytest.raises(SystemExit, match="is an output of zimage-lora"):
        convert(Lora(tmp_path / "a.lora"), checkpoint, plans, tmp_path / "b.lora")


@pytest.mark.parametrize("damage", ["a factor", "a name", "the rest", "the end"])
def test_altered_prepared_file_is_refused(prepared: PreparedLora, tmp_path: Path, damage: str) -> None:
    encoded = prepared.encode()
    part = {"a factor": encoded[-4:], "a name": b"to_v.weight.0.down", "the rest": b"precisions", "the end": b""}[
        damage
    ]
    place = encoded.rindex(part)
    altered = encoded[:-1] if damage == "the end" else encoded[:place] + part[::-1] + encoded[place + len(part) :]
    (tmp_path / "a.lora").write_bytes(altered)
    with pytest.raises(LoraMismatch, match=r"was altered|cannot read"):
        PreparedLora.read(tmp_path / "a.lora")


def test_plans_changed_on_disk_stop_generating(plans: Path, prepared: PreparedLora, tmp_path: Path) -> None:
    """No image with half a LoRA: a graph whose own weights cannot be restored refuses to run."""
    copy = shutil.copytree(plans, tmp_path / "plans")
    pipeline = Pipeline.load(copy)
    own = pipeline.generate(REQUEST).pixels
    pipeline.refit(prepared)
    assert not np.array_equal(pipeline.generate(REQUEST).pixels, own)
    swappable = copy / "denoiser.onnx.swappable"
    swappable.unlink()  # a session has it mapped
    swappable.write_bytes(b"shorter")
    with pytest.raises(PlanCorrupt, match="is not as it was built"):
        pipeline.refit(prepared)
    with pytest.raises(PlanCorrupt, match="load the plans again"):
        pipeline.generate(REQUEST)


# by name, in the loop and in the server

OUTLINES = Z_IMAGE_NANO.with_name("z-image-nano-lora") / "outlines.safetensors"
SMALL = replace(REQUEST, height=64, width=64, num_inference_steps=3)


@pytest.fixture(scope="module")
def outlines(plans: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed LoRA, prepared."""
    file = tmp_path_factory.mktemp("loras") / "outlines.lora"
    convert(Lora(OUTLINES), checkpoint, plans, file)
    return file


@pytest.fixture(scope="module")
def alone(plans: Path, prepared: PreparedLora, outlines: Path) -> dict[str | None, np.ndarray]:
    """SMALL under each LoRA, by `Pipeline.refit`."""
    pipeline = Pipeline.load(plans, verify=False)
    found = {}
    for name, lora in ((None, None), ("outlines", PreparedLora.read(outlines)), ("strong", prepared)):
        pipeline.refit(lora)
        found[name] = pipeline.generate(SMALL).pixels
    assert all(psnr(found[None], found[name]) < 30 for name in ("outlines", "strong"))
    return found


def test_alternating_loras_does_not_change_images(
    plans: Path, prepared: PreparedLora, outlines: Path, alone: dict[str | None, np.ndarray], tmp_path: Path
) -> None:
    """Bit for bit, cached prompts included: the strong LoRA changes the prompt encoder."""
    (tmp_path / "strong.lora").write_bytes(prepared.encode())
    pipeline = Pipeline.load(plans, verify=False)
    files = {"outlines": outlines, "strong": tmp_path / "strong.lora"}
    loop = EngineLoop(pipeline, loras=LoraRegistry(pipeline, files))
    pending_images = {}
    for number, name in enumerate(["strong", None, "outlines", "strong"]):
        loop.submit(f"{number} {name}", replace(SMALL, lora=name))
    while not loop.is_idle:
        pending_images |= {event.key: event.pending for event in loop.step() if isinstance(event, Denoised)}
    for key, pending in pending_images.items():
        assert np.array_equal(pending.finish().pixels, alone[None if "None" in key else key[2:]]), key
    assert len(pending_images) == 4
    assert np.array_equal(loop.generate(replace(SMALL, lora="strong")).pixels, alone["strong"])
    assert (loop.prompt_cache.hits, loop.prompt_cache.misses) == (2, 3)


def test_changed_or_deleted_lora_is_not_used(plans: Path, outlines: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(outlines, tmp_path / "outlines.lora"))
    pipeline = Pipeline.load(plans, verify=False)
    loras = LoraRegistry(pipeline, {"outlines": file})
    assert loras.check() == ()
    assert len(list(loras.apply(LoraChoice("outlines", 1.0)))) > 1, "in portions"
    os.utime(file, (0, 0))
    for _ in range(2):
        with pytest.raises(LoraMismatch, match="the LoRA 'outlines' cannot be used now") as caught:
            next(loras.apply(LoraChoice("outlines", 1.0)))
        assert str(tmp_path) not in str(caught.value), "clients read this message"
        assert str(file) in str(caught.value.__cause__)
        file.unlink(missing_ok=True)
    loop = EngineLoop(pipeline, loras=loras)
    loop.submit("a", replace(SMALL, lora="outlines"))
    assert [type(event) for _ in range(2) for event in loop.step()][1:] == [Failed]


def test_loras_are_checked_by_name(engines: Path, plans: Path, prepared: PreparedLora, tmp_path: Path) -> None:
    about = replace(prepared.about, weights_sha256="0" * 64)
    (tmp_path / "other.lora").write_bytes(replace(prepared, about=about).encode())
    files = {"other": tmp_path / "other.lora", "gone": tmp_path / "gone.lora"}
    other, gone = LoraRegistry(Pipeline.load(plans, verify=False), files).check()
    assert other.startswith("LoRA other: the LoRA was prepared for other weights than these plans")
    assert gone.startswith("LoRA gone: cannot read")
    (said, _) = LoraRegistry(Pipeline.load(engines, verify=False), files).check()
    assert said.startswith("LoRA other: the plans' weights cannot be changed; build them with --refittable")


def command(plans: Path, loras: Path) -> list[str]:
    options = ("--loras", str(loras), "--batching", "off", "--port", "0")
    return [sys.executable, "-m", "server.cli", "--engines", str(plans), *options]


@contextmanager
def served(plans: Path, loras: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    with subprocess.Popen(
        command(plans, loras), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split("ready on ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=30) as http:
                yield http, server
        finally:
            server.terminate()


def ask(http: httpx.Client, lora: str | None) -> httpx.Response:
    body = {"prompt": SMALL.prompt, "size": "64x64", "seed": SMALL.seed, "num_inference_steps": 3, "lora": lora}
    return http.post("/v1/images/generations", json=body)


def pixels_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))


def test_server_generates_with_the_requested_lora(
    plans: Path, outlines: Path, alone: dict[str | None, np.ndarray], tmp_path: Path
) -> None:
    """A deleted file fails its own images and no others, also after the worker restarts."""
    (tmp_path / "outlines.lora").symlink_to(outlines)
    with served(plans, tmp_path) as (http, server):
        assert http.get("/v1/model_info").json()["loras"] == ["outlines"]
        for name in ("outlines", None, "outlines"):
            assert np.array_equal(pixels_of(ask(http, name)), alone[name])
        (tmp_path / "outlines.lora").unlink()
        for is_another in (False, True):
            if is_another:
                (worker,) = psutil.Process(server.pid).children()
                worker.kill()
            assert np.array_equal(pixels_of(ask(http, None)), alone[None])
            gone = ask(http, "outlines")
            assert (gone.status_code, gone.json()["error"]["code"]) == (503, "lora_unavailable")
        assert 'zimage_worker_starts_total{device="cpu"} 2.0' in http.get("/metrics").text


def test_server_skips_loras_of_other_plans_and_says_so(plans: Path, prepared: PreparedLora, tmp_path: Path) -> None:
    about = replace(prepared.about, weights_sha256="0" * 64)
    (tmp_path / "other.safetensors").write_bytes(replace(prepared, about=about).encode())
    (tmp_path / "own.lora").write_bytes(prepared.encode())
    found = find(tmp_path, read(plans))
    assert [name for name, _ in found] == ["own"]


def test_server_does_not_start_with_an_altered_lora(plans: Path, prepared: PreparedLora, tmp_path: Path) -> None:
    (tmp_path / "altered.safetensors").write_bytes(prepared.encode()[:-4] + b"\0\0\0\1")
    done = subprocess.run(command(plans, tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "zimage-serve: LoRA altered: " in done.stderr and "was altered after zimage-lora wrote it" in done.stderr


def test_lora_that_is_replaced_while_the_server_runs_is_not_used_by_its_next_worker(
    plans: Path, prepared: PreparedLora, outlines: Path, alone: dict[str | None, np.ndarray], tmp_path: Path
) -> None:
    """A name stands for one file until the server restarts, however often its worker dies; other names go on."""
    shutil.copy(outlines, tmp_path / "first.lora")
    shutil.copy(outlines, tmp_path / "outlines.lora")
    with served(plans, tmp_path) as (http, server):
        assert np.array_equal(pixels_of(ask(http, "first")), alone["outlines"])
        (tmp_path / "new").write_bytes(prepared.encode())
        (tmp_path / "new").replace(tmp_path / "first.lora")
        for damage in ("replaced", "truncated", "removed"):
            (worker,) = psutil.Process(server.pid).children()
            worker.kill()
            for name in ("outlines", None):
                assert np.array_equal(pixels_of(ask(http, name)), alone[name]), damage
            answer = ask(http, "first")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "lora_unavailable"), damage
            if damage == "replaced":
                os.truncate(tmp_path / "first.lora", 100)
            else:
                (tmp_path / "first.lora").unlink(missing_ok=True)
    with served(plans, tmp_path) as (http, _):
        assert http.get("/v1/model_info").json()["loras"] == ["outlines"]
