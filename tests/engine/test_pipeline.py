"""The order of the graphs, the buffers between them, and errors that end an image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.host_engine import HostEngine, write_plans
from fakes.manifest import MANIFEST
from fakes.plan import load_fakes
from fakes.step_peak import STEP_BYTES, step_peak

from engine.backends.base import Backend
from engine.backends.host_memory import HostMemory
from engine.backends.memory import Memory, Tensor
from engine.errors import InvalidRequest, NonFiniteOutput, UnsupportedShape
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.manifest import GraphName
from engine.request import ImageRequest
from engine.sampling.noise import randn
from engine.sampling.schedule import sigmas
from engine.sampling.tokenizer import PromptTokenizer
from engine.scheduler.loop import EngineLoop

REQUEST = ImageRequest("a red circle", 96, 64, seed=7)


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a graph."""

    graph: GraphName
    shapes: dict[str, tuple[int, ...]]
    address: dict[str, int]
    values: dict[str, list[float]]  # of the short tensors
    latents: np.ndarray | None


@dataclass
class FakeGraph:
    """Records its inputs and fills its outputs: the denoiser adds 1, the VAE writes the first latent and its mean."""

    graph: GraphName
    calls: list[Call]
    poison: dict[int, float] = field(default_factory=dict)  # value to write instead, by the number of the call

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> None:
        latents = tensors["latents"].copy() if "latents" in tensors else None
        self.calls.append(
            Call(
                self.graph,
                {name: array.shape for name, array in tensors.items()},
                {name: array.ctypes.data for name, array in tensors.items()},
                {name: array.tolist() for name, array in tensors.items() if array.ndim == 1},
                latents,
            )
        )
        done = sum(call.graph == self.graph for call in self.calls)
        if self.graph == "prompt_encoder":
            output, value = tensors["prompt_embeds"], tensors["input_ids"][..., None].astype(np.float32)
        elif self.graph == "guidance":
            output, value = tensors["latents_guided"], tensors["latents_positive"]
        elif self.graph == "denoiser":
            output, value = tensors["latents_next"], tensors["latents"] + 1
        else:
            output, value = tensors["image_mean"], tensors["latents"].flat[0]
            tensors["image"][:] = int(value) % 256 if np.isfinite(value) else 0
        output[:] = value
        if done in self.poison:
            output[..., -1] = self.poison[done]


@dataclass
class Fakes:
    pipeline: Pipeline
    calls: list[Call]
    graphs: dict[GraphName, FakeGraph]
    memory: Memory
    cuda: FakeCuda | None

    def of(self, graph: GraphName) -> list[Call]:
        return [call for call in self.calls if call.graph == graph]

    def values(self, tensor: Tensor) -> np.ndarray:
        return self.memory.read(tensor).wait().copy()

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self.pipeline.decode(self.memory.write("latents", latents)).wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plans(tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer(folder, MANIFEST.model.prompt)


@pytest.fixture(params=["host", "device, late", "device, eager", "device, CUDA graphs"])
def fakes(request: pytest.FixtureRequest, folder: Path, tokenizer: PromptTokenizer) -> Iterator[Fakes]:
    """A pipeline whose graphs are functions, on the host and on devices that run streams in any allowed order."""
    calls: list[Call] = []
    graphs = {name: FakeGraph(name, calls) for name in MANIFEST.graphs}
    cuda = None
    if request.param == "host":
        memory = HostMemory(MANIFEST, MANIFEST.profiles, slots=2)
        loaded = Backend(memory, {name: HostEngine(graph) for name, graph in graphs.items()})
    else:
        cuda = FakeCuda(eagerness=0.9 if "eager" in request.param else 0)
        options = RuntimeOptions(cuda_graphs="on" if "graphs" in request.param else "off")
        loaded = load_fakes(cuda, graphs, folder, MANIFEST, options)
    yield Fakes(Pipeline(MANIFEST, tokenizer, loaded), calls, graphs, loaded.memory, cuda)
    loaded.close()
    assert cuda is None or not cuda.leaks


def test_image_runs_encoder_once_then_eight_steps_then_decoder(fakes: Fakes) -> None:
    image = fakes.pipeline.generate(REQUEST)
    assert [call.graph for call in fakes.calls] == ["prompt_encoder", *["denoiser"] * 8, "vae_decoder"]
    assert (image.size, image.seed, image.num_inference_steps) == ((96, 64), 7, 8)
    assert image.pixels.dtype == np.uint8
    assert image.prompt.text == "a red circle"
    assert image.seconds.denoiser == image.seconds.passes > 0 and image.seconds.encode == 0


def test_every_graph_gets_tensors_of_its_shapes(fakes: Fakes) -> None:
    ids = fakes.pipeline.generate(REQUEST).prompt.ids
    assert fakes.of("prompt_encoder")[0].shapes == {"input_ids": (1, 32), "lengths": (1,), "prompt_embeds": (1, 32, 8)}
    assert fakes.of("prompt_encoder")[0].values == {"lengths": [len(ids)]}
    tokens = 32 + 32  # 4 x 6 of the image, padded, and the prompt
    for call in fakes.of("denoiser"):
        assert call.shapes == {
            "latents": (1, 16, 8, 12),
            "latents_next": (1, 16, 8, 12),
            "prompt_embeds": (1, 32, 8),
            "sigma": (1,),
            "sigma_next": (1,),
            "rope_cos": (tokens, 16),
            "rope_sin": (tokens, 16),
        }
    assert fakes.of("vae_decoder")[0].shapes == {"latents": (1, 16, 8, 12), "image": (1, 64, 96, 3), "image_mean": (1,)}


def test_denoiser_reads_prompt_embeds_in_place(fakes: Fakes) -> None:
    fakes.pipeline.generate(REQUEST)
    assert fakes.of("denoiser")[0].address["prompt_embeds"] == fakes.of("prompt_encoder")[0].address["prompt_embeds"]


def test_short_prompt_is_padded_over_a_longer_one_before_it(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    fakes.pipeline.encode_prompt([tokenizer("a blue square " * 200)])
    short = tokenizer("a red circle")
    prompt_embeds = fakes.values(fakes.pipeline.encode_prompt([short]))  # the fake writes the ids
    assert prompt_embeds[0, :, 0].tolist() == [
        *short.ids,
        *[MANIFEST.model.prompt.pad_token_id] * (32 - len(short.ids)),
    ]


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_all_steps_have_the_same_bindings(fakes: Fakes, steps: int) -> None:
    fakes.pipeline.generate(ImageRequest("a", 64, 64, num_inference_steps=steps))
    denoiser, vae = fakes.of("denoiser"), fakes.of("vae_decoder")[0]
    assert len(denoiser) == steps
    assert len({(call.address["latents"], call.address["latents_next"]) for call in denoiser}) == 1
    assert vae.address["latents"] == denoiser[0].address["latents"] != denoiser[0].address["latents_next"]


def test_steps_start_from_noise_and_follow_the_schedule(fakes: Fakes) -> None:
    fakes.pipeline.generate(ImageRequest("a", 64, 64, seed=3, num_inference_steps=5))
    schedule, denoiser = sigmas(5, 3.0).tolist(), fakes.of("denoiser")
    assert [call.values["sigma"] for call in denoiser] == [[s] for s in schedule[:-1]]
    assert [call.values["sigma_next"] for call in denoiser] == [[s] for s in schedule[1:]]
    noise = randn(3, (1, 16, 8, 8))
    for step, call in enumerate(denoiser):
        np.testing.assert_allclose(call.latents, noise + step, atol=1e-5)


def test_repeated_shape_reuses_the_same_buffers(fakes: Fakes) -> None:
    """Engines then have nothing to bind again."""
    for height in (64, 512, 64):
        fakes.pipeline.generate(ImageRequest("a", 64, height, num_inference_steps=1))
    first, _, third = (call.address for call in fakes.of("denoiser"))
    assert first == third


def test_on_step_is_called_for_every_step(fakes: Fakes) -> None:
    calls: list[tuple[int, int, int]] = []
    request = ImageRequest("a", 64, 64, num_inference_steps=3)
    fakes.pipeline.generate(request, lambda done, steps: calls.append((done, steps, len(fakes.of("denoiser")))))
    assert [(done, steps) for done, steps, _ in calls] == [(1, 3), (2, 3), (3, 3)]
    assert all(done <= run <= min(done + fakes.memory.max_ahead, 3) for done, _, run in calls)


def test_exception_in_on_step_ends_only_that_image(fakes: Fakes) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, _steps: int) -> None:
        if done == 2:
            raise Cancelled

    expected = fakes.pipeline.generate(REQUEST).pixels
    fakes.calls.clear()
    with pytest.raises(Cancelled):
        fakes.pipeline.generate(REQUEST, cancel)
    fakes.pipeline.synchronize()
    run = [call.graph for call in fakes.calls]
    assert run == ["prompt_encoder"] + ["denoiser"] * (2 + fakes.memory.max_ahead)
    assert np.array_equal(fakes.pipeline.generate(REQUEST).pixels, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("graph", "call", "message"),
    [
        ("denoiser", 1, "NaN or Inf in the latents after step 1 of 8, so no image"),
        ("denoiser", 8, "NaN or Inf in the latents after step 8 of 8, so no image"),
        ("vae_decoder", 1, "NaN or Inf in the image, so no image"),
    ],
)
def test_nan_or_inf_raises_and_spoils_no_later_image(
    fakes: Fakes, graph: GraphName, call: int, message: str, value: float
) -> None:
    expected = fakes.pipeline.generate(REQUEST).pixels
    fakes.calls.clear()
    fakes.graphs[graph].poison[call] = value
    with pytest.raises(NonFiniteOutput, match=message):
        fakes.pipeline.generate(REQUEST)
    fakes.graphs[graph].poison.clear()
    assert np.array_equal(fakes.pipeline.generate(REQUEST).pixels, expected)


def test_pixels_survive_the_next_decoding(fakes: Fakes) -> None:
    """The image buffer is reused, so an image must not be a view of it."""
    first = fakes.pipeline.generate(REQUEST)
    before = first.pixels.copy()
    fakes.decode(np.full((1, 16, 8, 12), 200, np.float32))
    assert np.array_equal(first.pixels, before)


def test_missing_size_and_steps_use_the_models_defaults(fakes: Fakes) -> None:
    image = fakes.pipeline.generate(ImageRequest("a"))
    assert (image.size, image.num_inference_steps, image.seed) == ((256, 256), 8, 0)
    assert fakes.pipeline.generate(ImageRequest("a", width=64)).pixels.shape == (256, 64, 3)


REFUSED = [
    (ImageRequest("a", 64, 65), UnsupportedShape, "height"),
    (ImageRequest("a", 1024, 64), UnsupportedShape, "width"),
    (ImageRequest("a", 64, 0), UnsupportedShape, "height"),
    (ImageRequest("a", num_inference_steps=0), InvalidRequest, "num_inference_steps"),
    (ImageRequest("a", num_inference_steps=101), InvalidRequest, "num_inference_steps"),
    (ImageRequest(" "), InvalidRequest, "prompt"),
    (ImageRequest("\ud800"), InvalidRequest, "prompt"),
    (ImageRequest("a", negative_prompt="\ud800"), InvalidRequest, "negative_prompt"),
    (ImageRequest("a", guidance_scale=-1.0), InvalidRequest, "guidance_scale"),
    (ImageRequest("a", guidance_scale=float("nan")), InvalidRequest, "guidance_scale"),
    (ImageRequest("a", guidance_scale=31.0), InvalidRequest, "guidance_scale"),
]


@pytest.mark.parametrize(("request_", "error", "param"), REFUSED)
def test_invalid_request_is_refused_before_any_graph_runs(
    fakes: Fakes, request_: ImageRequest, error: type[InvalidRequest], param: str
) -> None:
    for verb in (EngineLoop(fakes.pipeline).generate, fakes.pipeline.generate):
        with pytest.raises(error) as refusal:
            verb(request_)
        assert refusal.value.param == param
    assert fakes.calls == []


@pytest.fixture(scope="module")
def real(engines: Path) -> Pipeline:
    return Pipeline.load(engines, RuntimeOptions(threads=1))


@pytest.mark.parametrize("side", [256, 512])
def test_steps_allocate_no_arrays(real: Pipeline, side: int) -> None:
    """ONNX Runtime's own arena is not Python's, so it is not counted."""
    request = ImageRequest("a red circle", side, side)
    real.generate(request)  # binds the arrays
    assert step_peak(real, request) < STEP_BYTES
