"""Engine loops over graphs that are functions of numpy, and workloads to run on them."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from fakes.cuda import FakeCuda
from fakes.host_engine import HostEngine
from fakes.manifest import MANIFEST
from fakes.plan import load_fakes
from hypothesis import strategies as st

from engine.backends.base import Backend
from engine.backends.host_memory import HostMemory
from engine.errors import LoraMismatch, ZImageError
from engine.images.generated import GeneratedImage
from engine.init_image import InitImage
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.manifest import GraphName
from engine.request import ImageRequest, LoraChoice
from engine.sampling.schedule import sigmas
from engine.sampling.tokenizer import PromptTokenizer, TokenizedPrompt
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.scheduler.events import Denoised, Event, Failed, Started, Stepped
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.sample import GuidanceBranch, Sample
from engine.size import Size

Device = Literal["host", "device, late", "device, eager"]

DEVICES: tuple[Device, ...] = ("host", "device, late", "device, eager")
SLOTS = 5
BATCHING = BatchTable("a fake", (PassTimes(512, 512, (1.0, 1.1, 1.2, 1.3)),))
RED = ImageRequest("a red circle", 96, 64, seed=7, num_inference_steps=4)


@dataclass
class FakeGraphs:
    """The graphs as functions that treat each row alike, and count their rows and batches.

    Attributes:
        poisoned: number of the forward pass whose first row gets a NaN, counted from 1.
    """

    rows: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    lora_offset: float = 0.0
    poisoned: int | None = None

    def prompt_encoder(self, tensors: Mapping[str, np.ndarray]) -> None:
        ids, lengths = tensors["input_ids"], tensors["lengths"]
        self.rows["prompt_encoder"] += len(ids)
        tensors["prompt_embeds"][:] = np.sin(ids[..., None] + np.arange(8) + lengths[:, None, None] + self.lora_offset)

    def denoiser(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.rows["denoiser"] += len(tensors["latents"])
        self.batches.append(len(tensors["latents"]))
        shift = tensors["rope_cos"].sum() * 1e-3
        for row, latents in enumerate(tensors["latents"]):
            target = tensors["prompt_embeds"][row].mean() * 100 + shift + latents[0, 0, 0] + self.lora_offset
            velocity = np.tanh(latents) - target
            step = tensors["sigma_next"][row] - tensors["sigma"][row]
            tensors["latents_next"][row] = latents + step * velocity
        if len(self.batches) == self.poisoned:
            tensors["latents_next"][0, 3, 2, 1] = np.nan

    def guidance(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.rows["guidance"] += len(tensors["guidance_scale"])
        latents = (tensors[f"latents_{name}"] for name in ("positive", "negative", "before"))
        rows = zip(*latents, tensors["guidance_scale"], tensors["cfg_normalization"], strict=True)
        tensors["latents_guided"][:] = [guided(*row) for row in rows]

    def vae_encoder(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.rows["vae_encoder"] += 1
        tensors["image_latents"][0] = image_latents(tensors["init_image"][0], tensors["posterior_noise"][0])

    def blend(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.rows["blend"] += len(tensors["blend_sigma"])
        sigma, names = (
            tensors["blend_sigma"][:, None, None, None],
            ("latents_to_blend", "image_latents", "noise", "mask"),
        )
        tensors["latents_blended"][:] = blended(*(tensors[name] for name in names), sigma)

    def vae_decoder(self, tensors: Mapping[str, np.ndarray]) -> None:
        latents = tensors["latents"][0]
        self.rows["vae_decoder"] += 1
        image = np.abs(latents[:3].repeat(8, 1).repeat(8, 2).transpose(1, 2, 0)) * 50 % 255
        tensors["image"][0] = np.rint(image)
        tensors["image_mean"][0] = image.mean()

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Return [height, width, 3] uint8 of [1, 16, h, w] latents."""
        _, _, h, w = latents.shape
        tensors = {"latents": latents, "image": np.zeros((1, 8 * h, 8 * w, 3), np.uint8), "image_mean": np.zeros(1)}
        self.vae_decoder(tensors)
        return tensors["image"][0]


def guided(
    positive: np.ndarray, negative: np.ndarray, before: np.ndarray, scale: np.float32, normalization: float = 0.0
) -> np.ndarray:
    """Return the latents [16, h, w] after a guided step, at diffusers' scale and with its bound of the norm."""
    with np.errstate(invalid="ignore"):
        change = positive - before + scale * (positive - negative)
        most = np.float32(normalization) * np.linalg.norm(positive - before)
        if normalization and np.linalg.norm(change) > most:
            change *= most / np.linalg.norm(change)
        return before + change


def image_latents(pixels: np.ndarray, posterior_noise: np.ndarray) -> np.ndarray:
    """Return latents [16, h, w] of an image, [8 * h, 8 * w, 3] uint8."""
    return pixels[::8, ::8].mean(-1)[None] / 128 - 1 + np.float32(0.1) * posterior_noise


def blended(
    latents: np.ndarray, image: np.ndarray, noise: np.ndarray, mask: np.ndarray, sigma: np.ndarray | np.float32
) -> np.ndarray:
    """Return the latents where the mask is 1, and the image at a noise level where it is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(mask > 0.5, latents, (1 - sigma) * image + sigma * noise)


@dataclass
class FakeLoras:
    """A `LoraRegistry` whose LoRAs change the graphs at once, so a pass that still runs would give other values.

    In the middle of a change, and after one that `fails`, they are not finite.
    """

    graphs: FakeGraphs
    portions: int = 2
    fails: BaseException | None = None
    applied: list[str | None] = field(default_factory=list)

    names = ("a", "b", "damaged")

    def require_strength(self, request: ImageRequest) -> None:
        """Accept any strength."""

    def apply(self, choice: LoraChoice | None) -> Iterator[None]:
        name, strength = choice or (None, 0.0)
        if name == "damaged":
            raise LoraMismatch("a damaged file")
        self.graphs.lora_offset = np.nan
        for _ in range(self.portions):
            yield
        if self.fails is not None:
            raise self.fails
        self.applied.append(name)
        self.graphs.lora_offset = strength * {None: 0.0, "a": 0.5, "b": -1.5}[name]


@dataclass
class LoopBuilder:
    """A pipeline of fakes, and loops over it."""

    pipeline: Pipeline
    graphs: FakeGraphs

    def __post_init__(self) -> None:
        self.loras = FakeLoras(self.graphs)

    def loop(self, table: BatchTable = BATCHING, min_slice: float = 3600.0) -> EngineLoop:
        """Return a loop with no LoRA in the plans.

        Args:
            min_slice: seconds of a LoRA's time slice while samples of other LoRAs wait.
        """
        deque(self.loras.apply(None), maxlen=0)
        self.loras.applied.clear()
        return EngineLoop(self.pipeline, table, self.loras, LoraScheduler(min_slice))


def loop_builder(folder: Path, device: Device, slots: int = SLOTS) -> LoopBuilder:
    """Return a fresh pipeline of fakes.

    Args:
        folder: plans that `fakes.host_engine.write_plans` wrote.
    """
    graphs = FakeGraphs()
    functions: dict[GraphName, Callable[[Mapping[str, np.ndarray]], None]] = {
        "prompt_encoder": graphs.prompt_encoder,
        "denoiser": graphs.denoiser,
        "guidance": graphs.guidance,
        "vae_decoder": graphs.vae_decoder,
        "vae_encoder": graphs.vae_encoder,
        "blend": graphs.blend,
    }
    if device == "host":
        memory = HostMemory(MANIFEST, MANIFEST.profiles, slots)
        loaded = Backend(memory, {name: HostEngine(function) for name, function in functions.items()})
    else:
        cuda = FakeCuda(eagerness=0.9 if device == "device, eager" else 0)
        loaded = load_fakes(cuda, functions, folder, MANIFEST, RuntimeOptions(cuda_graphs="off", slots=slots))
    return LoopBuilder(Pipeline(MANIFEST, PromptTokenizer(folder, MANIFEST.model.prompt), loaded), graphs)


@dataclass(frozen=True)
class Arrival:
    """An image, the loop step before which it is submitted, and the one before which it is cancelled, if at all."""

    request: ImageRequest
    submit_at: int = 0
    cancel_at: int | None = None
    init_image: InitImage | None = None


def init_image(size: Size, seed: int = 0, *, masked: bool = False) -> InitImage:
    """Return a random image, with a random mask of blocks that differ between neighbouring latents."""
    chance = np.random.default_rng(seed)
    pixels = chance.integers(0, 256, (size.height, size.width, 3), np.uint8)
    mask = chance.integers(0, 2, (size.height // 8, size.width // 8), np.uint8).repeat(8, 0).repeat(8, 1) * 255
    return InitImage(size, pixels.tobytes(), mask.tobytes() if masked else None)


def edited(request: ImageRequest, strength: float | None = None, *, seed: int = 0, masked: bool = False) -> Arrival:
    """Return an image that begins with a random one, submitted at once."""
    image = init_image(request.size(MANIFEST), seed, masked=masked)
    return Arrival(request.starting_from(image, strength), init_image=image)


def workloads(*loras: str | None) -> st.SearchStrategy[list[Arrival]]:
    """Return a strategy for images under these LoRAs, from noise, from an image, and inpainted."""
    images = st.builds(
        ImageRequest,
        prompt=st.sampled_from(["a red circle", "a blue star", "a blue star " * 12]),
        height=st.sampled_from([64, 64, 96]),
        width=st.just(64),
        seed=st.integers(0, 3),
        num_inference_steps=st.integers(1, 5),
        negative_prompt=st.sampled_from(["", "a red circle " * 12]),
        guidance_scale=st.sampled_from([0.0, 0.0, 2.5]),
        lora=st.sampled_from(loras),
        lora_strength=st.sampled_from([1.0, 1.0, 0.5, 0.0]),
        cfg_normalization=st.sampled_from([0.0, 0.0, 0.5]),
        cfg_truncation=st.sampled_from([1.0, 1.0, 0.4, 0.0]),
    )
    plain = st.builds(Arrival, images)
    starts = st.builds(
        edited, images, st.sampled_from([0.01, 0.3, 0.6, 1.0]), seed=st.integers(0, 3), masked=st.booleans()
    )
    cancel_at = st.none() | st.none() | st.integers(0, 25)
    arrivals = st.builds(
        lambda arrival, at, cancel: replace(arrival, submit_at=at, cancel_at=cancel),
        plain | starts,
        st.integers(0, 12),
        cancel_at,
    )
    return st.lists(arrivals, min_size=1, max_size=8)


def run_workload(loop: EngineLoop, arrivals: list[Arrival]) -> dict[int, GeneratedImage | ZImageError]:
    """Run a workload to its end. Images are finished last, when every buffer has been overwritten."""
    pending_images, outcomes = {}, {}
    step, stepped, started = 0, Counter[str](), Counter[str]()
    while step <= max(arrival.submit_at for arrival in arrivals) or not loop.is_idle:
        for number, arrival in enumerate(arrivals):
            if arrival.submit_at == step:
                loop.submit(str(number), arrival.request, init_image=arrival.init_image)
            if arrival.cancel_at == step:
                loop.cancel(str(number))
        for event in loop.step():
            match event:
                case Denoised():
                    pending_images[int(event.key)] = event.pending
                case Failed():
                    outcomes[int(event.key)] = event.error
                case Started():
                    started[event.key] += 1
                case Stepped():
                    stepped[event.key] += 1
                    assert event.done == stepped[event.key] <= event.steps
                    assert started[event.key] == 1
        step += 1
        assert step < 500, "the loop never ends"
    assert loop._scheduler.slots_taken == 0, "a slot was lost"
    return outcomes | {number: pending.finish() for number, pending in pending_images.items()}


def remaining_events(loop: EngineLoop) -> list[Event]:
    """Run a loop until it is idle and return its events."""
    events: list[Event] = []
    while not loop.is_idle:
        events += loop.step()
    return events


def finish_order(loop: EngineLoop) -> list[str]:
    """Run a loop until it is idle and return the keys in the order in which they were denoised."""
    return [event.key for event in remaining_events(loop) if isinstance(event, Denoised)]


def submit(loop: EngineLoop, *names: str, **change: object) -> None:
    """Submit images, each named by its LoRA, or "-" for none, and a number."""
    for name in names:
        loop.submit(name, replace(RED, lora=None if name[0] == "-" else name[:-1], **change))


def sample(
    key: str,
    side: int,
    steps: int = 8,
    *,
    lora: str | None = None,
    client: str = "",
    submitted_at: float = 0.0,
    branches: int = 1,
    tokens: tuple[int, int] = (1, 1),
    guided_steps: int | None = None,
) -> Sample:
    """Return a square sample.

    Args:
        tokens: of its prompt and of its negative prompt.
        guided_steps: steps of the negative prompt, if not all.
    """
    passes = steps, steps if guided_steps is None else guided_steps
    prompts = tuple(GuidanceBranch(TokenizedPrompt((1,) * tokens[i], "", ""), passes[i]) for i in range(branches))
    request = ImageRequest("a", side, side, lora=lora)
    return Sample(
        key, request, Size(side, side), steps, sigmas(steps, 3.0), prompts, client=client, submitted_at=submitted_at
    )
