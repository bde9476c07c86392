"""In-flight batching: images join and leave at step boundaries.

Each `step` runs one forward pass of those whose turn it is, and returns what has happened. Who has a turn is in
`sample` and `lora_turns`, how many gain from going together in `batching`. One thread owns it; it knows no queue limits
and no clients.

An image that has begun has a slot, its latents and its prompt in memory of their own: for a pass they are copied to
the batch that engines are bound to, and the latents back. So a batch can be another one at every step, and neither
addresses nor CUDA graphs change. On a GPU those copies take microseconds; nothing waits for the host, which hears of
a step while the next one runs.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from engine.backends.memory import Array, Reading, Tensor, TimingEvent
from engine.errors import LoraMismatch, NonFiniteOutput, UnsupportedShape
from engine.pipeline import GeneratedImage, Pipeline, require_finite
from engine.request import ImageRequest
from engine.sampling.preview import estimate
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, Event, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.lora_registry import LoraRegistry
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.pending_image import PendingImage
from engine.scheduler.prompt_cache import PromptCache
from engine.scheduler.prompt_encoder import CachedPromptEncoder
from engine.scheduler.sample import GuidanceBranch, Pass, Sample
from engine.scheduler.slots import Slots


@dataclass(frozen=True, slots=True)
class _Running:
    """A forward pass on its way."""

    passes: Sequence[Pass]
    latents: Reading  # [B, 16, h, w]
    marks: Sequence[TimingEvent]  # before the prompts that it needs, before it, and after it
    decoding: Sequence[PendingImage]  # what is decoded before it, and not yet accounted for


class EngineLoop:
    """Generates many images at once from one pipeline.

    Args:
        pipeline: which the loop has to itself. As many images can be under way as its memory has slots.
        table: what gains from being batched.
        loras: that images may ask for; none of them is in the plans yet.
    """

    def __init__(self, pipeline: Pipeline, table: BatchTable | None = None, loras: LoraRegistry | None = None) -> None:
        assert pipeline.memory.slots >= 2, "a guided image takes two"
        self.pipeline = pipeline
        self.prompt_cache = PromptCache()
        self._encoder = CachedPromptEncoder(pipeline, self.prompt_cache)
        self._table = table or BatchTable()
        self._memory = pipeline.memory
        self._slots = Slots(pipeline.memory, pipeline.manifest.model)
        self._loras = loras or LoraRegistry(pipeline)
        self._turns = LoraScheduler()
        self._samples: dict[str, Sample] = {}
        self._running: deque[_Running] = deque()
        self._pending_images: deque[PendingImage] = deque()  # whose pixels may still be in the buffers
        self._decoding: list[PendingImage] = []  # since the last pass

    @property
    def is_idle(self) -> bool:
        """Whether `step` has nothing to do."""
        return not self._samples and not self._running

    def device_memory(self) -> tuple[int, int] | None:
        """Bytes taken of the device's memory, and all there are; None on a CPU."""
        return self._memory.usage()

    def submit(self, key: str, request: ImageRequest, previews: int = 0) -> None:
        """Queues an image.

        Args:
            key: names it in events; of no other image that is under way.
            previews: how many times, evenly spread over its steps, to tell what it will be like.

        Raises:
            InvalidRequest: it cannot be generated.
        """
        assert key not in self._samples, key
        started = time.perf_counter()
        request.check(self.pipeline.manifest, self._loras.names)
        schedule = self.pipeline.schedule(request)
        branches = [GuidanceBranch(self.pipeline.tokenize(request.prompt))]
        if request.is_guided:
            branches.append(GuidanceBranch(self.pipeline.tokenize(request.negative_prompt)))
        shown = _spread(previews, len(schedule) - 1)
        size = request.size(self.pipeline.manifest)
        sample = Sample(key, request, size, schedule, tuple(branches), shown, came=started)
        sample.took(tokenize=time.perf_counter() - started)
        self._samples[key] = sample
        self._turns.add(sample)

    def cancel(self, key: str) -> bool:
        """Drops an image; what is running for it is not waited for. False if there is none of that key."""
        sample = self._samples.get(key)
        if sample is None:
            return False
        self._leave(sample)
        return True

    def step(self) -> list[Event]:
        """Enqueues the next forward pass, and returns what is known to have happened since the last call.

        Raises:
            DeviceError: the GPU failed; no image under way will be finished.
            PlanCorrupt: the plans were altered since they were loaded, and have no known weights any more.
        """
        events: list[Event] = []
        is_over = self._turns.is_over(time.perf_counter())
        if is_over and not self._running and self._slots.are_free:
            self._change_lora(events)
            return events
        passes = self._next(is_over)
        for sample, _ in passes:
            self._start(sample, events)
        if events:  # told before the first pass of an image, which may end the process
            return events
        if passes:
            self._running.append(self._enqueue(passes))
        while len(self._running) > (self._memory.ahead if passes else 0):
            self._settle(self._running.popleft(), events)
        return events

    def generate(self, request: ImageRequest, on_step: Callable[[int, int], None] | None = None) -> GeneratedImage:
        """Generates one image, of a loop that has no other.

        Raises:
            InvalidRequest, NonFiniteOutput, DeviceError: why there is none.
        """
        assert not self._samples
        self.submit("", request)
        try:
            while True:
                for event in self.step():
                    match event:
                        case Stepped() if on_step is not None:
                            on_step(event.done, event.steps)
                        case Failed():
                            raise event.error
                        case Denoised():
                            return event.pending.finish()
        finally:
            self.cancel("")

    def _change_lora(self, events: list[Event]) -> None:
        """Puts in the LoRA of who has waited longest, of whom is told a step before: a change may end the process."""
        first = self._turns.first()
        assert first is not None
        if not first.is_started:
            self._start(first, events)
            return
        lora = first.request.lora
        try:
            seconds = self._loras.put_in(lora)
        except LoraMismatch as error:
            for sample in [sample for sample in self._samples.values() if sample.request.lora == lora]:
                self._leave(sample)
                events.append(Failed(sample.key, error))
        else:
            self._turns.change(lora, seconds)
            for pending in self._decoding:  # of the turn before, so charged to nobody; but their marks are used again
                pending.settle()
            self._decoding.clear()
            events.append(Switched(seconds))

    def _start(self, sample: Sample, events: list[Event]) -> None:
        if not sample.is_started:
            sample.is_started = True
            events.append(Started(sample.key))

    def _next(self, is_full: bool) -> list[Pass]:
        """The passes whose turn it is, each with a slot; of those who have one if it `is_full`."""
        for slotted_only in (False, True):  # when who came first finds no slot, those who have one go on until it does
            for lane in self._turns.lanes:
                turn = []
                for one in lane.passes(self._limit(lane.samples[0]), slotted_only=slotted_only):
                    if self._has_slot(one[0], is_full):
                        turn.append(one)
                    else:
                        is_full = True  # for those who come later too, or whoever needs two slots would wait for ever
                if turn:
                    return turn
        return []

    def _has_slot(self, sample: Sample, is_full: bool) -> bool:
        """Whether the image has its slots, or gets them now."""
        if sample.branches[0].slot is None:
            return not is_full and self._slots.take(sample)
        return True

    def _limit(self, sample: Sample) -> int:
        """How many passes of an image's size go together: what gains, and what the plans take."""
        for batch in range(self._table.limit(sample.size), 1, -1):
            with suppress(UnsupportedShape):
                self.pipeline.manifest.profile_for(sample.size, batch)
                return batch
        return 1

    def _join(self, sample: Sample) -> None:
        """Fills an image's slots before its first pass."""
        started = time.perf_counter()
        self._turns.joins(started)
        for branch in sample.branches:
            prompt_embeds = self._encoder.encode(branch.prompt, self._turns.present)
            self._memory.copy(self._slots.prompt_embeds(branch), prompt_embeds)
        sample.joined = time.perf_counter()
        sample.took(prompt_encoder=sample.joined - started)
        sample.latents = self.pipeline.noise(sample.request.seed, sample.size)
        self._slots.put_latents(sample, sample.latents)

    def _enqueue(self, passes: Sequence[Pass]) -> _Running:
        """What a batch needs before its forward pass, and that."""
        began = self._memory.record_event()
        for sample, _ in passes:
            if not sample.joined:
                self._join(sample)
        encoded = self._memory.record_event()
        latents_next = self._pass(passes)
        over = self._memory.record_event()  # before the copy, which then waits for it
        decoding, self._decoding = self._decoding, []
        return _Running(passes, self._memory.read(latents_next), (began, encoded, over), decoding)

    def _pass(self, passes: Sequence[Pass]) -> Tensor:
        """Enqueues a forward pass over a batch; the latents after it."""
        memory, batch = self._memory, len(passes)
        one = self._slots.latents(passes[0][0]).shape
        latents, latents_next = (memory.view(name, (batch, *one[1:])) for name in ("latents", "latents_next"))
        prompt_embeds = memory.view(
            "prompt_embeds", (batch, passes[0][1].length, self.pipeline.manifest.model.prompt_embeds_dim)
        )
        for row, (sample, branch) in enumerate(passes):
            memory.copy(memory.row(latents, row), self._slots.latents(sample))
            memory.copy(memory.row(prompt_embeds, row), self._slots.prompt_embeds(branch))
        levels = np.array([sample.schedule[branch.enqueued : branch.enqueued + 2] for sample, branch in passes])
        self.pipeline.step(latents, latents_next, prompt_embeds, levels[:, 0], levels[:, 1])
        for row, (sample, branch) in enumerate(passes):
            branch.enqueued += 1
            if not sample.is_guided:
                memory.copy(self._slots.latents(sample), memory.row(latents_next, row))
        return latents_next

    def _settle(self, running: _Running, events: list[Event]) -> None:
        """Waits for a forward pass and says what came of it."""
        values = running.latents.wait()
        began, encoded, over = running.marks
        seconds = encoded.seconds_until(over)
        lanes = self._turns.lanes  # a LoRA is changed when nothing runs
        lanes.charge(running.passes[0][0].size, began.seconds_until(over))
        for pending in running.decoding:
            lanes.charge(pending.size, pending.decoding_seconds())
        self._encoder.keep()
        events.append(Passed(len(running.passes), seconds))
        for (sample, branch), latents in zip(running.passes, values, strict=True):
            if not sample.is_gone:
                sample.took(passes=sample.seconds.passes + seconds / len(running.passes))
                self._advance(sample, branch, latents, events)

    def _advance(self, sample: Sample, branch: GuidanceBranch, latents: Array, events: list[Event]) -> None:
        """A forward pass of one image is over: [16, h, w]."""
        try:
            require_finite(latents, f"latents after step {sample.done + 1} of {sample.steps}")
        except NonFiniteOutput as error:
            self._leave(sample)
            events.append(Failed(sample.key, error))
            return
        if sample.is_guided:
            branch.output = latents.copy()
            if any(each.output is None for each in sample.branches):
                return
            latents = self._guide(sample)
        events.append(Stepped(sample.key, sample.done + 1, sample.steps, self._estimate(sample, latents)))
        sample.done += 1
        if sample.done == sample.steps:
            sample.took(denoiser=time.perf_counter() - sample.joined)
            events.append(Denoised(sample.key, self._decode(sample)))
            self._leave(sample)

    def _guide(self, sample: Sample) -> Array:
        """The step of a guided image: both prompts' steps began at the same latents, and are linear in velocity."""
        (positive, negative), scale = (branch.output for branch in sample.branches), sample.request.guidance_scale
        assert positive is not None and negative is not None
        latents: Array = positive + np.float32(scale) * (positive - negative)
        for branch in sample.branches:
            branch.output = None
        self._slots.put_latents(sample, latents[None])
        return latents

    def _estimate(self, sample: Sample, latents: Array) -> Array | None:
        """What the image will be like, if that is wanted after this step."""
        before, step = sample.latents, sample.done + 1
        sample.latents = latents.copy() if step + 1 in sample.previews else None
        if before is None or step not in sample.previews:
            return None
        return estimate(before.reshape(latents.shape), latents, *sample.schedule[step - 1 : step + 1])

    def _decode(self, sample: Sample) -> PendingImage:
        while len(self._pending_images) > self._memory.ahead:
            self._pending_images.popleft().settle()  # its place in the buffers is this one's
        started = self._memory.record_event()
        slotted = self._slots.latents(sample)
        latents = self._memory.view("latents", slotted.shape)
        self._memory.copy(latents, slotted)
        pending = PendingImage(sample, self.pipeline.decode(latents), started)
        self._pending_images.append(pending)
        self._decoding.append(pending)
        return pending

    def _leave(self, sample: Sample) -> None:
        sample.is_gone = True
        del self._samples[sample.key]
        self._turns.remove(sample)
        self._slots.leave(sample)


def _spread(previews: int, steps: int) -> frozenset[int]:
    """Steps after which to show an image, evenly spread, and never the last."""
    return frozenset(round(steps * (i + 1) / (previews + 1)) for i in range(previews)) - {0, steps}
