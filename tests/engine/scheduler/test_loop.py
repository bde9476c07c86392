"""In-flight batching: whatever else is under way, an image is the one that it is alone."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes.cuda import PASS_SECONDS, FakeCuda, load_fakes
from fakes.host_engine import HostEngine, write_plans
from fakes.manifest import MANIFEST
from fakes.step_peak import STEP_BYTES, peak_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.load.http_clients import ENGINE_STAGES
from engine.backends.base import Backend
from engine.backends.memory import HostMemory
from engine.errors import InvalidRequest, LoraMismatch, NonFiniteOutput, ZImageError
from engine.options import RuntimeOptions
from engine.pipeline import GeneratedImage, Pipeline
from engine.plan.manifest import GraphName
from engine.request import ImageRequest
from engine.sampling import rope
from engine.sampling.schedule import sigmas
from engine.sampling.tokenizer import PromptTokenizer, TokenizedPrompt
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.scheduler.events import Denoised, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_schedule import LEAST, SHARE, LoraScheduler
from engine.scheduler.prompt_cache import PromptCache, PromptKey
from engine.scheduler.sample import FairQueue, GuidanceBranch, Sample
from engine.size import Size

SEATS = 5
BATCHING = BatchTable("a fake", (PassTimes(512, 512, (1.0, 1.1, 1.2, 1.3)),))
RED = ImageRequest("a red circle", 96, 64, seed=7, num_inference_steps=4)


@dataclass
class Kernels:
    """Three graphs as functions of numpy that treat each row alike; they count their passes and rows."""

    rows: Counter[str]
    batches: list[int]
    pull: float = 0.0  # of the LoRA

    def prompt_encoder(self, tensors: Mapping[str, np.ndarray]) -> None:
        ids, lengths = tensors["input_ids"], tensors["lengths"]
        self.rows["prompt_encoder"] += len(ids)
        tensors["prompt_embeds"][:] = np.sin(ids[..., None] + np.arange(8) + lengths[:, None, None] + self.pull)

    def denoiser(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.rows["denoiser"] += len(tensors["latents"])
        self.batches.append(len(tensors["latents"]))
        shift = tensors["rope_cos"].sum() * 1e-3
        for row, latents in enumerate(tensors["latents"]):
            towards = tensors["prompt_embeds"][row].mean() * 100 + shift + latents[0, 0, 0] + self.pull
            velocity = np.tanh(latents) - towards
            step = tensors["sigma_next"][row] - tensors["sigma"][row]
            tensors["latents_next"][row] = latents + step * velocity

    def vae_decoder(self, tensors: Mapping[str, np.ndarray]) -> None:
        latents = tensors["latents"][0]
        self.rows["vae_decoder"] += 1
        image = np.abs(latents[:3].repeat(8, 1).repeat(8, 2).transpose(1, 2, 0)) * 50
        tensors["image"][0] = image % 256


@dataclass
class FakeLoras:
    """`engine.scheduler.lora_registry.LoraRegistry` that change the kernels, at once: what still runs would notice."""

    kernels: Kernels
    seconds: float = 0.0
    log: list[str | None] = field(default_factory=list)

    names = ("a", "b", "damaged")

    def put_in(self, name: str | None) -> float:
        if name == "damaged":
            raise LoraMismatch("a damaged file")
        self.log.append(name)
        self.kernels.pull = {None: 0.0, "a": 0.5, "b": -1.5}[name]
        return self.seconds


@dataclass
class Bench:
    """A pipeline of fakes, fresh for each program."""

    pipeline: Pipeline
    kernels: Kernels

    def __post_init__(self) -> None:
        self.loras = FakeLoras(self.kernels)

    def loop(self, table: BatchTable = BATCHING, least: float = 3600.0) -> EngineLoop:
        """With no LoRA in the plans; `least`: seconds of a LoRA's turn while others wait."""
        self.loras.put_in(None)
        self.loras.log.clear()
        loop = EngineLoop(self.pipeline, table, self.loras)
        loop._turns = LoraScheduler(least)
        return loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plans(tmp_path_factory.mktemp("plans"))


def bench(folder: Path, where: str, slots: int = SEATS) -> Bench:
    kernels = Kernels(Counter(), [])
    functions: dict[GraphName, Callable[[Mapping[str, np.ndarray]], None]] = {
        "prompt_encoder": kernels.prompt_encoder,
        "denoiser": kernels.denoiser,
        "vae_decoder": kernels.vae_decoder,
    }
    if where == "host":
        memory = HostMemory(MANIFEST, MANIFEST.profiles, slots)
        loaded = Backend(memory, {name: HostEngine(function) for name, function in functions.items()})
    else:
        cuda = FakeCuda(haste=0.9 if where == "device, hasty" else 0)
        loaded = load_fakes(cuda, functions, folder, MANIFEST, RuntimeOptions(cuda_graphs="off", slots=slots))
    return Bench(Pipeline(MANIFEST, PromptTokenizer(folder, MANIFEST.model.prompt), loaded), kernels)


@pytest.fixture(params=["host", "device, late", "device, hasty"])
def fakes(request: pytest.FixtureRequest, folder: Path) -> Iterator[Bench]:
    made = bench(folder, request.param)
    yield made
    made.pipeline.close()


IMAGES = {
    "prompt": st.sampled_from(["a red circle", "a blue star", "a blue star " * 12]),
    "height": st.sampled_from([64, 64, 96]),
    "width": st.just(64),
    "seed": st.integers(0, 3),
    "num_inference_steps": st.integers(1, 5),
    "negative_prompt": st.sampled_from(["", "a red circle " * 12]),
    "guidance_scale": st.sampled_from([0.0, 0.0, 2.5]),
}


@dataclass(frozen=True)
class Guest:
    """An image, the turn at which it comes, and the turn at which it is cancelled, if it still is there."""

    request: ImageRequest
    comes: int
    goes: int | None


def programs(*loras: str | None) -> st.SearchStrategy[list[Guest]]:
    """Of images under these LoRAs."""
    images = st.builds(ImageRequest, **IMAGES, lora=st.sampled_from(loras))
    guest = st.builds(Guest, images, comes=st.integers(0, 12), goes=st.none() | st.none() | st.integers(0, 25))
    return st.lists(guest, min_size=1, max_size=8)


def play(loop: EngineLoop, guests: list[Guest]) -> dict[int, GeneratedImage | ZImageError]:
    """Runs a program to its end; images are finished late, when everything has been overwritten."""
    pending_images, found = {}, {}
    turn, heard, started = 0, Counter[str](), Counter[str]()
    while turn <= max(guest.comes for guest in guests) or not loop.is_idle:
        for number, guest in enumerate(guests):
            if guest.comes == turn:
                loop.submit(str(number), guest.request)
            if guest.goes == turn:
                loop.cancel(str(number))
        for event in loop.step():
            match event:
                case Denoised():
                    pending_images[int(event.key)] = event.pending
                case Failed():
                    found[int(event.key)] = event.error
                case Started():
                    started[event.key] += 1
                case Stepped():
                    heard[event.key] += 1
                    assert event.done == heard[event.key] <= event.steps
                    assert started[event.key] == 1
        turn += 1
        assert turn < 500, "it never ends"
    assert loop._slots.are_free, "a slot was lost"
    return found | {number: pending.finish() for number, pending in pending_images.items()}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(guests=programs(None, None, "a", "b"), least=st.sampled_from([0.0, 3600.0]))
@example(guests=[Guest(ImageRequest("a", 64, 64, lora=lora), 0, None) for lora in (None, "a", "a")], least=0.0)
@pytest.mark.parametrize("where", ["host", "device, late", "device, hasty"])
def test_an_image_is_the_same_in_every_company(folder: Path, where: str, guests: list[Guest], least: float) -> None:
    """Any neighbours under any LoRA, joining at any step, leaving in any order, with LoRAs that hurry each other or
    do not: bit for bit what it is alone, and none is lost."""
    made = bench(folder, where)
    found = play(made.loop(least=least), guests)
    for number, guest in enumerate(guests):
        if guest.goes is None:
            alone = made.loop().generate(guest.request)
            assert np.array_equal(found[number].pixels, alone.pixels), guest
    made.pipeline.close()


def test_alone_it_is_what_the_plain_loop_generates(fakes: Bench) -> None:
    for request in (RED, replace(RED, prompt="a blue star", height=96, num_inference_steps=1)):
        assert np.array_equal(fakes.loop().generate(request).pixels, fakes.pipeline.generate(request).pixels)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(guests=programs(None))
def test_images_of_the_trained_model_are_the_same_in_every_company(nano: Pipeline, guests: list[Guest]) -> None:
    """ONNX Runtime in FP32. Measured: no pixel differs; one level is allowed, for machines with other kernels."""
    found = play(EngineLoop(nano, BATCHING), guests)
    for number, guest in enumerate(guests):
        if guest.goes is None:
            alone = EngineLoop(nano).generate(guest.request).pixels.astype(int)
            assert np.abs(found[number].pixels - alone).max() <= 1, guest


def test_latents_of_the_trained_model_in_a_batch_are_those_alone(nano: Pipeline) -> None:
    """Relative to the largest latent; where tiles of a matrix product fall depends on the number of rows."""
    prompts = [nano.tokenize(prompt) for prompt in ("a red circle", "a blue star", "a green ring", "two stars")]
    noise = np.concatenate([nano.noise(seed, Size(96, 64)) for seed in range(4)])
    schedule = sigmas(8, 3.0)
    together = nano.denoise(nano.encode_prompt(prompts), noise, schedule).copy()
    for row, prompt in enumerate(prompts):
        alone = nano.denoise(nano.encode_prompt([prompt]), noise[row : row + 1], schedule)[0]
        assert np.abs(together[row] - alone).max() <= 1e-5 * np.abs(alone).max()


@pytest.fixture(scope="module")
def nano(plan_directory: Path) -> Iterator[Pipeline]:
    with Pipeline.load(plan_directory, RuntimeOptions(slots=SEATS)) as pipeline:
        yield pipeline


def test_images_that_gain_from_it_share_passes_and_others_do_not(fakes: Bench) -> None:
    guests = [Guest(replace(RED, seed=seed), 0, None) for seed in range(4)]
    play(fakes.loop(), guests)
    assert fakes.kernels.batches == [4] * 4
    fakes.kernels.batches.clear()
    play(fakes.loop(BatchTable()), guests)
    assert fakes.kernels.batches == [1] * 16


def test_batches_stay_within_the_profile(fakes: Bench) -> None:
    """The plans take four of up to 256 x 256 at once, of 512 x 256 one."""
    table = BatchTable("", (PassTimes(512, 512, tuple(1 + i / 10 for i in range(9))),))
    play(fakes.loop(table), [Guest(replace(RED, height=height), 0, None) for height in (64, 512) for _ in range(5)])
    assert set(fakes.kernels.batches) == {4, 1}


def test_a_late_one_joins_at_the_next_step(fakes: Bench) -> None:
    play(fakes.loop(), [Guest(RED, 0, None), Guest(RED, 2, None), Guest(RED, 4, None)])  # each is announced first
    assert fakes.kernels.batches == [1, 2, 3, 3, 2, 1]


def test_an_image_is_announced_before_its_first_pass_which_may_end_the_process(fakes: Bench) -> None:
    loop = fakes.loop()
    loop.submit("a", RED)
    assert loop.step() == [Started("a")]
    assert fakes.kernels.batches == []


def test_without_gain_the_first_is_finished_first(fakes: Bench) -> None:
    loop = fakes.loop(BatchTable())
    for seed in range(3):
        loop.submit(str(seed), replace(RED, seed=seed))
    finished = [event.key for event in events_of(loop) if isinstance(event, Denoised)]
    assert finished == ["0", "1", "2"]
    order = [event.key for event in events_of(loop) if isinstance(event, Stepped)]
    assert order == sorted(order)


def events_of(loop: EngineLoop) -> list[object]:
    events: list[object] = []
    while not loop.is_idle:
        events += loop.step()
    return events


# guidance


def test_guidance_moves_from_the_negative_prompt_to_the_positive_one(fakes: Bench) -> None:
    """diffusers' scale: positive + scale * (positive - negative), at every step."""
    request = replace(RED, negative_prompt="a blue star " * 12, guidance_scale=2.5)
    prompt_cache = []
    for prompt in (request.prompt, request.negative_prompt):
        ids = fakes.pipeline.tokenize(prompt).ids
        padded = np.zeros((1, -(-len(ids) // 32) * 32), np.int64)
        padded[0, : len(ids)] = ids
        prompt_embeds = np.zeros((*padded.shape, 8), np.float32)
        fakes.kernels.prompt_encoder(
            {"input_ids": padded, "lengths": np.array([len(ids)]), "prompt_embeds": prompt_embeds}
        )
        prompt_cache.append(prompt_embeds)
    latents, schedule = fakes.pipeline.noise(7, Size(96, 64)), sigmas(4, 3.0)
    for sigma, sigma_next in pairwise(schedule):
        outputs = []
        for prompt_embeds in prompt_cache:
            cos, _ = rope.tables(MANIFEST.model.rope, 4, 6, prompt_embeds.shape[1])
            outputs.append(np.empty_like(latents))
            levels = {"sigma": np.array([sigma]), "sigma_next": np.array([sigma_next])}
            tensors = {"latents": latents, "latents_next": outputs[-1], "prompt_embeds": prompt_embeds, "rope_cos": cos}
            fakes.kernels.denoiser(tensors | levels)
        latents = outputs[0] + np.float32(2.5) * (outputs[0] - outputs[1])
    image = np.zeros((1, 64, 96, 3), np.float32)
    fakes.kernels.vae_decoder({"latents": latents, "image": image})
    assert np.abs(fakes.loop().generate(request).pixels - np.rint(image[0])).max() <= 1


def test_guidance_costs_a_second_pass_and_its_absence_nothing(fakes: Bench) -> None:
    fakes.loop().generate(replace(RED, negative_prompt="a blue star"))
    assert fakes.kernels.rows == {"prompt_encoder": 1, "denoiser": 4, "vae_decoder": 1}
    fakes.kernels.rows.clear()
    fakes.loop().generate(replace(RED, guidance_scale=1.0))
    assert fakes.kernels.rows == {"prompt_encoder": 2, "denoiser": 8, "vae_decoder": 1}


def test_an_empty_negative_prompt_is_encoded_as_one(fakes: Bench) -> None:
    empty, blank = (replace(RED, guidance_scale=2.0, negative_prompt=text) for text in ("", "a blue star"))
    assert not np.array_equal(fakes.loop().generate(empty).pixels, fakes.loop().generate(blank).pixels)


@pytest.mark.parametrize("slots", [2, 5, 12])
def test_who_finds_no_slot_does_not_hold_up_those_who_have_one(folder: Path, slots: int) -> None:
    """The first in the lane waits for two slots, and those who have them are of another prompt length."""
    made = bench(folder, "host", slots)
    long = replace(RED, prompt="a blue star " * 12, negative_prompt="a blue star " * 12)
    guests = [Guest(replace(RED, num_inference_steps=1), 0, None)]
    guests += [Guest(replace(long, guidance_scale=2.0, num_inference_steps=3), 0, None) for _ in range(slots // 2)]
    guests += [Guest(replace(RED, num_inference_steps=5, seed=seed), 0, None) for seed in range(slots)]
    guests += [Guest(replace(RED, guidance_scale=2.0, negative_prompt=long.prompt), 1, None) for _ in range(3)]
    assert len(play(made.loop(), guests)) == len(guests)


def test_more_guided_images_than_slots(fakes: Bench) -> None:
    guests = [Guest(replace(RED, height=64 + 16 * (i % 3), guidance_scale=1.5), 0, None) for i in range(9)]
    assert len(play(fakes.loop(), guests)) == 9


# LoRAs


def generated(loop: EngineLoop) -> list[str]:
    """Keys in the order in which they are generated."""
    return [event.key for event in events_of(loop) if isinstance(event, Denoised)]


def submit(loop: EngineLoop, *images: str, **change: object) -> None:
    """Each named by its LoRA, or "-", and a number."""
    for name in images:
        loop.submit(name, replace(RED, lora=None if name[0] == "-" else name[:-1], **change))


def test_images_of_one_lora_are_generated_together(fakes: Bench) -> None:
    loop = fakes.loop()
    submit(loop, "a1", "-1", "b1", "a2", "-2", "b2")
    assert generated(loop) == ["-1", "-2", "a1", "a2", "b1", "b2"]
    assert (fakes.loras.log, fakes.kernels.batches) == (["a", "b"], [2] * 12)


def test_under_a_lora_the_first_is_finished_first(fakes: Bench) -> None:
    loop = fakes.loop(BatchTable(), least=0.0)
    submit(loop, "a1", "a2", "b1", "a3", "b2", num_inference_steps=1)
    order = generated(loop)
    assert [name for name in order if name[0] == "a"] == ["a1", "a2", "a3"]
    assert [name for name in order if name[0] == "b"] == ["b1", "b2"]


@pytest.mark.parametrize(("least", "places"), [(0.0, [1, 2, 3]), (3600.0, [30])])
def test_a_lora_has_its_turn_though_there_is_always_another_s_image(
    fakes: Bench, least: float, places: list[int]
) -> None:
    """When the turn is up those who have a slot are generated, then who waits, and then the stream goes on."""
    loop, order = fakes.loop(BatchTable(), least), []
    for number in range(30):
        submit(loop, f"-{number}", *(["a1"] if number == 1 else []))
        order += [event.key for _ in range(2) for event in loop.step() if isinstance(event, Denoised)]
    order += generated(loop)
    assert len(order) == 31
    assert order.index("a1") in places


def test_three_streams_take_turns(fakes: Bench) -> None:
    """Though everybody has waited too long, every turn generates: as many as there are slots."""
    loop = fakes.loop(BatchTable(), least=0.0)
    for number in range(SEATS + 1):
        submit(loop, f"-{number}", f"a{number}", f"b{number}", num_inference_steps=2)
    assert len(generated(loop)) == 3 * (SEATS + 1)
    assert len(fakes.loras.log) < 3 * (SEATS + 1)


def test_a_turn_s_length() -> None:
    turns = LoraScheduler()
    turns.add(under(None, came=0.0))
    turns.joins(0.5)
    assert turns.first() is None and not turns.is_over(1e9)
    turns.add(under("a", came=10.0))
    turns.add(under("b", came=11.0))
    turns.add(under(None, came=12.0))
    assert turns.first().request.lora == "a"
    assert not turns.is_over(10.0 + LEAST) and turns.is_over(10.1 + LEAST)
    turns.change("a", seconds=LEAST)
    assert turns.first().came == 0.0
    assert not turns.is_over(1e9), "not before its first image"
    turns.joins(20.0)
    turns.joins(30.0)
    assert not turns.is_over(20.0 + SHARE * LEAST) and turns.is_over(20.1 + SHARE * LEAST)


def test_a_turn_is_over_when_none_is_left() -> None:
    turns = LoraScheduler()
    one = under(None, came=0.0)
    turns.add(one)
    turns.add(under("a", came=0.0))
    assert not turns.is_over(1.0)
    turns.remove(one)
    assert turns.is_over(1.0)


def under(lora: str | None, came: float) -> Sample:
    made = sample(str(came), 64)
    return replace(made, request=replace(made.request, lora=lora), came=came)


def test_it_is_told_whose_lora_comes_before_it_does(fakes: Bench) -> None:
    """If putting it in ends the process, that image counts as tried."""
    loop = fakes.loop()
    fakes.loras.seconds = 0.25
    submit(loop, "a1", "a2")
    assert loop.step() == [Started("a1")] and fakes.loras.log == []
    assert loop.step() == [Switched(0.25)] and fakes.loras.log == ["a"]
    assert [event for event in events_of(loop) if isinstance(event, Started)] == [Started("a2")]


def test_a_lora_that_cannot_be_put_in_fails_its_images_alone(fakes: Bench) -> None:
    loop = fakes.loop(least=0.0)
    submit(loop, "-1", "a1", "damaged1", "damaged2", "a2", "-2")
    events = events_of(loop)
    assert {event.key: str(event.error) for event in events if isinstance(event, Failed)} == {
        "damaged1": "a damaged file",
        "damaged2": "a damaged file",
    }
    assert {event.key for event in events if isinstance(event, Denoised)} == {"-1", "-2", "a1", "a2"}


def test_who_waits_for_a_lora_can_leave(fakes: Bench) -> None:
    loop = fakes.loop()
    submit(loop, "a1")
    loop.step()  # which tells that it is its turn
    assert loop.cancel("a1")
    submit(loop, "b1", "-1")
    assert generated(loop) == ["-1", "b1"]
    assert fakes.loras.log == ["b"]


def test_a_prompt_that_was_being_encoded_when_its_image_left(fakes: Bench) -> None:
    """It is kept for its LoRA, so it must not be encoded under the next one."""
    loop = fakes.loop()
    submit(loop, "a1")
    while not fakes.pipeline.memory.slots - len(loop._slots._free):
        loop.step()
    loop.cancel("a1")
    loop.generate(RED)
    again = loop.generate(replace(RED, lora="a")).pixels
    assert np.array_equal(again, fakes.loop().generate(replace(RED, lora="a")).pixels)


def test_captions_are_kept_for_each_lora(fakes: Bench) -> None:
    loop = fakes.loop()
    for lora in (None, "a", None, "a"):
        loop.generate(replace(RED, lora=lora))
    assert fakes.kernels.rows["prompt_encoder"] == 2


def test_a_lora_that_is_not_offered(fakes: Bench) -> None:
    with pytest.raises(InvalidRequest, match="lora must be one of a, b, damaged; got 'c'") as caught:
        fakes.loop().submit("c1", replace(RED, lora="c"))
    assert caught.value.param == "lora"
    with pytest.raises(InvalidRequest, match="lora must be absent"):
        EngineLoop(fakes.pipeline).submit("c1", replace(RED, lora="c"))


# failures


def test_an_image_with_nan_fails_alone(fakes: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = fakes.loop()
    alone = fakes.loop().generate(RED).pixels
    noise = fakes.pipeline.noise
    monkeypatch.setattr(
        fakes.pipeline, "noise", lambda seed, size: noise(seed, size) * (np.float32(np.nan) if seed == 13 else 1)
    )
    found = play(loop, [Guest(RED, 0, None), Guest(replace(RED, seed=13), 1, None), Guest(RED, 1, None)])
    assert isinstance(found[1], NonFiniteOutput)
    assert "latents after step 1 of 4" in str(found[1])
    assert all(np.array_equal(found[number].pixels, alone) for number in (0, 2))


def test_what_cannot_be_generated_is_refused_and_leaves_nothing(fakes: Bench) -> None:
    loop = fakes.loop()
    with pytest.raises(InvalidRequest):
        loop.submit("a", replace(RED, height=65))
    assert loop.is_idle and loop.step() == []


def test_who_is_cancelled_takes_no_more_passes(fakes: Bench) -> None:
    loop = fakes.loop()
    loop.submit("a", replace(RED, num_inference_steps=100))
    for _ in range(3):
        loop.step()
    assert loop.cancel("a")
    assert not loop.cancel("a") and not loop.cancel("b")
    assert [type(event) for event in events_of(loop)] in ([], [Passed])  # what was running, of which nobody hears
    assert fakes.kernels.rows["denoiser"] <= 3
    assert fakes.loop().generate(RED).seed == 7


def test_steps_allocate_no_arrays(nano: Pipeline) -> None:
    loop = EngineLoop(nano, BATCHING)
    for side in (256, 64):
        request = ImageRequest("a red circle", side, side)
        loop.generate(request)  # binds the arrays
        assert peak_of(lambda on_step, request=request: loop.generate(request, on_step)) < STEP_BYTES


# what is told


def test_waiting_to_be_finished_is_no_decoding(fakes: Bench) -> None:
    """The queue's estimates are made of it."""
    loop = fakes.loop()
    loop.submit("a", RED)
    pending_images = []
    while not loop.is_idle:
        pending_images += [event.pending for event in loop.step() if isinstance(event, Denoised)]
    time.sleep(0.3)
    assert pending_images[0].finish().seconds.vae_decoder < 0.2


@pytest.mark.parametrize("where", ["device, late", "device, hasty"])
def test_times_are_the_device_s_and_of_whom_they_are(folder: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded runs after a pass that was enqueued before, and is neither that one's nor the next one's."""
    charged: dict[int, float] = Counter()
    charge = FairQueue.charge

    def listen(lanes: FairQueue, size: Size, seconds: float) -> None:
        charged[size.height] += seconds
        charge(lanes, size, seconds)

    monkeypatch.setattr(FairQueue, "charge", listen)
    made = bench(folder, where)
    large = replace(RED, prompt="a blue star", height=256, num_inference_steps=2)
    guests = [Guest(large, 0, None), *(Guest(replace(RED, seed=seed), 0, None) for seed in range(3))]
    found = play(made.loop(BatchTable()), guests)
    for number, guest in enumerate(guests):
        seconds, passes = found[number].seconds, guest.request.num_inference_steps
        assert seconds.passes == pytest.approx(passes * PASS_SECONDS)
        assert seconds.vae_decoder == pytest.approx(PASS_SECONDS)
    assert charged[256] == pytest.approx((1 + 2 + 1) * PASS_SECONDS)  # prompt, passes, image
    assert charged[64] == pytest.approx((1 + 12 + 2) * PASS_SECONDS)  # nobody competes with what is decoded last
    made.pipeline.close()


def test_a_prompt_s_time_is_not_that_of_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates add both."""
    made = bench(folder, "host")
    encode = made.pipeline.encode_prompt
    monkeypatch.setattr(made.pipeline, "encode_prompt", lambda prompts: (time.sleep(0.2), encode(prompts))[1])
    seconds = made.loop().generate(RED).seconds
    assert seconds.prompt_encoder > 0.2 > seconds.passes


def test_stages_tell_all_that_an_image_takes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zimage-bench http` takes what is left of a request for HTTP's, so no work of the engine may be."""
    made = bench(folder, "host")
    rint = np.rint
    monkeypatch.setattr(np, "rint", lambda *args, **kwargs: (time.sleep(0.2), rint(*args, **kwargs))[1])
    started = time.perf_counter()
    seconds = made.loop().generate(RED).seconds
    generated = time.perf_counter() - started
    assert generated - sum(getattr(seconds, stage) for stage in ENGINE_STAGES) < 0.1


def test_a_step_does_not_wait_for_the_pixels_of_one_of_two_that_end_with_it(folder: Path) -> None:
    made = bench(folder, "device, late")
    loop = made.loop()
    for seed in range(2):
        loop.submit(str(seed), replace(RED, seed=seed))
    pending_images = [event.pending for event in events_of(loop) if isinstance(event, Denoised)]
    assert [pending._outcome for pending in pending_images] == [None, None]
    made.pipeline.synchronize()
    made.pipeline.close()


def test_events_tell_an_image_s_story(fakes: Bench) -> None:
    loop = fakes.loop()
    loop.submit("a", RED)
    story = [event for event in events_of(loop) if not isinstance(event, Passed)]
    assert [type(event) for event in story] == [Started, *[Stepped] * 4, Denoised]
    assert [(event.done, event.steps) for event in story if isinstance(event, Stepped)] == [(i, 4) for i in range(1, 5)]
    assert {event.key for event in story} == {"a"}
    image = story[-1].pending.finish()
    assert all(seconds > 0 for stage, seconds in asdict(image.seconds).items() if stage != "encode")
    assert image.prompt.text == "a red circle"


@pytest.mark.parametrize(
    ("previews", "steps"), [(0, []), (1, [4]), (2, [3, 5]), (3, [2, 4, 6]), (7, list(range(1, 8)))]
)
def test_previews_are_spread_over_the_steps(fakes: Bench, previews: int, steps: list[int]) -> None:
    loop = fakes.loop()
    loop.submit("a", replace(RED, num_inference_steps=8), previews)
    shown = [event for event in events_of(loop) if isinstance(event, Stepped) and event.estimate is not None]
    assert [event.done for event in shown] == steps
    assert all(event.estimate.shape == (16, 8, 12) for event in shown)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_preview_is_where_the_step_s_velocity_leads(fakes: Bench, guidance: float) -> None:
    """In one step of a two-step image: noise - velocity, from the latents before and after."""
    request = replace(RED, num_inference_steps=2, guidance_scale=guidance, negative_prompt="a blue star")
    loop = fakes.loop()
    loop.submit("a", request, previews=1)
    (shown,) = [event for event in events_of(loop) if isinstance(event, Stepped) and event.estimate is not None]
    one_step = fakes.loop()
    one_step.submit("b", replace(request, num_inference_steps=1), previews=0)
    (generated,) = [event for event in events_of(one_step) if isinstance(event, Denoised)]
    image = np.zeros((1, 64, 96, 3), np.float32)
    fakes.kernels.vae_decoder({"latents": shown.estimate[None], "image": image})
    assert np.abs(generated.pending.finish().pixels - np.rint(image[0])).max() <= 1


# prompts


def test_one_prompt_is_encoded_once(fakes: Bench) -> None:
    loop = fakes.loop()
    for prompt in ("a red circle", "a red circle", "a blue one", "a red circle"):
        loop.generate(replace(RED, prompt=prompt))
    assert fakes.kernels.rows["prompt_encoder"] == 2
    assert (loop.prompt_cache.hits, loop.prompt_cache.misses) == (2, 2)


def test_the_cache_drops_what_was_not_used_for_longest() -> None:
    cache = PromptCache(capacity=3 * 400)
    keys = [PromptKey((number,), None) for number in range(5)]
    for key in keys[:3]:
        cache.put(key, np.zeros(100, np.float32))
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], np.zeros(100, np.float32))
    assert [cache.get(key) is not None for key in keys[:4]] == [True, False, True, True]
    cache.put(keys[4], np.zeros(301, np.float32))  # larger than the whole
    assert cache.get(keys[4]) is None and cache.get(keys[3]) is not None


# who goes next


def sample(key: str, side: int, steps: int = 8) -> Sample:
    prompt = TokenizedPrompt((1,), "", "")
    return Sample(key, ImageRequest("a", side, side), Size(side, side), sigmas(steps, 3.0), (GuidanceBranch(prompt),))


def test_sizes_share_the_time_alike() -> None:
    lanes = FairQueue()
    for number in range(50):
        lanes.add(sample(f"large {number}", 512))
    lanes.charge((512, 512), 1000.0)  # long before the small one came
    lanes.add(sample("small", 64, steps=100))
    order = []
    for _ in range(44):
        lane = next(iter(lanes))
        order.append(lane.samples[0].size[0])
        lanes.charge(lane.samples[0].size, 10.0 if order[-1] == 512 else 1.0)
    assert order.count(512) == 4 and order.count(64) == 40
    assert 512 in order[:2] and 64 in order[:2]


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_who_is_alone_in_a_size_and_asks_again_at_once_gets_no_more_than_a_share(steps: int) -> None:
    """The last pass of an image leaves its lane empty; it counts all the same."""
    lanes, spent = FairQueue(), Counter[int]()
    for number in range(200):
        lanes.add(sample(f"small {number}", 64, steps=100))
    lanes.add(sample("large", 512, steps))
    while spent.total() < 1000:
        one = next(iter(lanes)).samples[0]
        side, seconds = one.size[0], 10 if one.size[0] == 512 else 1
        one.done += 1
        if one.done == one.steps:
            lanes.remove(one)
        lanes.charge(one.size, seconds)
        spent[side] += seconds
        if one.done == one.steps:
            lanes.add(sample("again", side, one.steps))
    assert abs(spent[512] - spent[64]) <= 10


def test_a_size_that_had_all_the_time_there_was_owes_its_last_pass() -> None:
    lanes = FairQueue()
    large = sample("large", 512)
    lanes.add(large)
    lanes.charge(large.size, 1000.0)
    lanes.remove(large)
    lanes.charge(large.size, 10.0)  # its last pass
    lanes.add(sample("small", 64))
    lanes.charge((64, 64), 9.0)
    lanes.add(large)
    assert next(iter(lanes)).samples != [large]
    lanes.charge((64, 64), 2.0)
    assert next(iter(lanes)).samples == [large]


# the table


def test_the_best_batch_gains_on_every_smaller_one() -> None:
    assert PassTimes(64, 64, (1.0,)).best == 1
    assert PassTimes(64, 64, (1.0, 2.0, 3.0, 4.0)).best == 1
    assert PassTimes(64, 64, (1.0, 1.0, 1.0, 1.0)).best == 4
    assert PassTimes(64, 64, (1.0, 2.0, 2.0, 4.0)).best == 3
    assert PassTimes(64, 64, (1.0, 1.96, 2.94, 3.84)).best == 1  # 4 per cent are not worth the delay


def test_a_size_is_batched_as_the_next_larger_one_that_was_measured(tmp_path: Path) -> None:
    rows = (PassTimes(512, 512, (1.0, 2.0)), PassTimes(128, 64, (1.0, 1.0)), PassTimes(256, 256, (1.0, 1.5, 1.5)))
    table = BatchTable("here", rows)
    assert [table.limit(Size(*size)) for size in ((64, 64), (128, 64), (128, 128), (512, 256), (528, 512))] == [
        2,
        2,
        3,
        1,
        1,
    ]
    assert BatchTable.read(tmp_path) == BatchTable() and BatchTable().limit(Size(64, 64)) == 1
    (tmp_path / "batching.json").write_bytes(table.encode())
    assert BatchTable.read(tmp_path) == table
    (tmp_path / "batching.json").write_bytes(table.encode()[:40])
    with pytest.raises(ZImageError, match="zimage-bench batching"):
        BatchTable.read(tmp_path)
