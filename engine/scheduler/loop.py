"""In-flight batching: pictures join and leave at step boundaries.

Each `step` runs one forward pass of those whose turn it is, and returns what has happened. Who has a turn is in
`sample` and `lora_turns`, how many gain from going together in `batching`. One thread owns it; it knows no queue limits
and no clients.

A picture that has begun has a seat, its latents and its caption in memory of their own: for a pass they are copied to
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

from engine.backends.memory import Array, Mark, Reading, Tensor
from engine.errors import LoraMismatch, NonFiniteOutput, UnsupportedShape
from engine.pipeline import Picture, Pipeline, require_finite
from engine.request import PictureRequest
from engine.sampling.preview import estimate
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Drawn, Event, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.lora_registry import Loras
from engine.scheduler.lora_schedule import LoraTurns
from engine.scheduler.pending_image import Drawing
from engine.scheduler.prompt_cache import CaptionCache
from engine.scheduler.prompt_encoder import CaptionEncoder
from engine.scheduler.sample import Branch, Pass, Sample
from engine.scheduler.slots import Seats


@dataclass(frozen=True, slots=True)
class _Running:
    """A forward pass on its way."""

    passes: Sequence[Pass]
    latents: Reading  # [B, 16, h, w]
    marks: Sequence[Mark]  # before the prompts that it needs, before it, and after it
    decoding: Sequence[Drawing]  # what is decoded before it, and not yet accounted for


class EngineLoop:
    """Draws many pictures at once from one pipeline.

    Args:
        pipeline: which the loop has to itself. As many pictures can be under way as its memory has seats.
        table: what gains from being batched.
        loras: that pictures may ask for; none of them is in the plans yet.
    """

    def __init__(self, pipeline: Pipeline, table: BatchTable | None = None, loras: Loras | None = None) -> None:
        assert pipeline.memory.seats >= 2, "a guided picture takes two"
        self.pipeline = pipeline
        self.captions = CaptionCache()
        self._encoder = CaptionEncoder(pipeline, self.captions)
        self._table = table or BatchTable()
        self._memory = pipeline.memory
        self._seats = Seats(pipeline.memory, pipeline.manifest.model)
        self._loras = loras or Loras(pipeline)
        self._turns = LoraTurns()
        self._samples: dict[str, Sample] = {}
        self._running: deque[_Running] = deque()
        self._drawings: deque[Drawing] = deque()  # whose pixels may still be in the buffers
        self._decoding: list[Drawing] = []  # since the last pass

    @property
    def is_idle(self) -> bool:
        """Whether `step` has nothing to do."""
        return not self._samples and not self._running

    def device_memory(self) -> tuple[int, int] | None:
        """Bytes taken of the device's memory, and all there are; None on a CPU."""
        return self._memory.usage()

    def submit(self, key: str, request: PictureRequest, previews: int = 0) -> None:
        """Queues a picture.

        Args:
            key: names it in events; of no other picture that is under way.
            previews: how many times, evenly spread over its steps, to tell what it will be like.

        Raises:
            InvalidRequest: it cannot be drawn.
        """
        assert key not in self._samples, key
        started = time.perf_counter()
        request.check(self.pipeline.manifest, self._loras.names)
        schedule = self.pipeline.schedule(request)
        branches = [Branch(self.pipeline.tokenize(request.prompt))]
        if request.is_guided:
            branches.append(Branch(self.pipeline.tokenize(request.negative_prompt)))
        shown = _spread(previews, len(schedule) - 1)
        size = request.size(self.pipeline.manifest)
        sample = Sample(key, request, size, schedule, tuple(branches), shown, came=started)
        sample.seconds["tokenize"] = time.perf_counter() - started
        self._samples[key] = sample
        self._turns.add(sample)

    def cancel(self, key: str) -> bool:
        """Drops a picture; what is running for it is not waited for. False if there is none of that key."""
        sample = self._samples.get(key)
        if sample is None:
            return False
        self._leave(sample)
        return True

    def step(self) -> list[Event]:
        """Enqueues the next forward pass, and returns what is known to have happened since the last call.

        Raises:
            DeviceError: the GPU failed; no picture under way will be finished.
            PlanCorrupt: the plans were altered since they were loaded, and have no known weights any more.
        """
        events: list[Event] = []
        is_over = self._turns.is_over(time.perf_counter())
        if is_over and not self._running and self._seats.are_free:
            self._change_lora(events)
            return events
        passes = self._next(is_over)
        for sample, _ in passes:
            self._start(sample, events)
        if events:  # told before the first pass of a picture, which may end the process
            return events
        if passes:
            self._running.append(self._enqueue(passes))
        while len(self._running) > (self._memory.ahead if passes else 0):
            self._settle(self._running.popleft(), events)
        return events

    def draw(self, request: PictureRequest, on_step: Callable[[int, int], None] | None = None) -> Picture:
        """Draws one picture, of a loop that has no other.

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
                        case Drawn():
                            return event.drawing.finish()
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
            for drawing in self._decoding:  # of the turn before, so charged to nobody; but their marks are used again
                drawing.settle()
            self._decoding.clear()
            events.append(Switched(seconds))

    def _start(self, sample: Sample, events: list[Event]) -> None:
        if not sample.is_started:
            sample.is_started = True
            events.append(Started(sample.key))

    def _next(self, is_full: bool) -> list[Pass]:
        """The passes whose turn it is, each with a seat; of those who have one if it `is_full`."""
        for seated_only in (False, True):  # when who came first finds no seat, those who have one go on until it does
            for lane in self._turns.lanes:
                turn = []
                for one in lane.passes(self._limit(lane.samples[0]), seated_only=seated_only):
                    if self._seated(one[0], is_full):
                        turn.append(one)
                    else:
                        is_full = True  # for those who come later too, or whoever needs two seats would wait for ever
                if turn:
                    return turn
        return []

    def _seated(self, sample: Sample, is_full: bool) -> bool:
        """Whether the picture has its seats, or gets them now."""
        if sample.branches[0].seat is None:
            return not is_full and self._seats.take(sample)
        return True

    def _limit(self, sample: Sample) -> int:
        """How many passes of a picture's size go together: what gains, and what the plans take."""
        for batch in range(self._table.limit(*sample.size), 1, -1):
            with suppress(UnsupportedShape):
                self.pipeline.manifest.profile_for(*sample.size, batch)
                return batch
        return 1

    def _join(self, sample: Sample) -> None:
        """Fills a picture's seats before its first pass."""
        started = time.perf_counter()
        self._turns.joins(started)
        for branch in sample.branches:
            caption = self._encoder.encode(branch.prompt, self._turns.present)
            self._memory.copy(self._seats.caption(branch), caption)
        sample.joined = time.perf_counter()
        sample.seconds["prompt_encoder"] = sample.joined - started
        sample.latents = self.pipeline.noise(sample.request.seed, *sample.size)
        self._seats.put_latents(sample, sample.latents)

    def _enqueue(self, passes: Sequence[Pass]) -> _Running:
        """What a batch needs before its forward pass, and that."""
        began = self._memory.mark()
        for sample, _ in passes:
            if not sample.joined:
                self._join(sample)
        encoded = self._memory.mark()
        latents_next = self._pass(passes)
        over = self._memory.mark()  # before the copy, which then waits for it
        decoding, self._decoding = self._decoding, []
        return _Running(passes, self._memory.read(latents_next), (began, encoded, over), decoding)

    def _pass(self, passes: Sequence[Pass]) -> Tensor:
        """Enqueues a forward pass over a batch; the latents after it."""
        memory, batch = self._memory, len(passes)
        one = self._seats.latents(passes[0][0]).shape
        latents, latents_next = (memory.view(name, (batch, *one[1:])) for name in ("latents", "latents_next"))
        caption = memory.view("caption", (batch, passes[0][1].length, self.pipeline.manifest.model.caption_dim))
        for row, (sample, branch) in enumerate(passes):
            memory.copy(memory.row(latents, row), self._seats.latents(sample))
            memory.copy(memory.row(caption, row), self._seats.caption(branch))
        levels = np.array([sample.schedule[branch.enqueued : branch.enqueued + 2] for sample, branch in passes])
        self.pipeline.step(latents, latents_next, caption, levels[:, 0], levels[:, 1])
        for row, (sample, branch) in enumerate(passes):
            branch.enqueued += 1
            if not sample.is_guided:
                memory.copy(self._seats.latents(sample), memory.row(latents_next, row))
        return latents_next

    def _settle(self, running: _Running, events: list[Event]) -> None:
        """Waits for a forward pass and says what came of it."""
        values = running.latents.wait()
        began, encoded, over = running.marks
        seconds = encoded.seconds_until(over)
        lanes = self._turns.lanes  # a LoRA is changed when nothing runs
        lanes.charge(running.passes[0][0].size, began.seconds_until(over))
        for drawing in running.decoding:
            lanes.charge(drawing.size, drawing.decoding_seconds())
        self._encoder.keep()
        events.append(Passed(len(running.passes), seconds))
        for (sample, branch), latents in zip(running.passes, values, strict=True):
            if not sample.is_gone:
                sample.seconds["passes"] = sample.seconds.get("passes", 0.0) + seconds / len(running.passes)
                self._advance(sample, branch, latents, events)

    def _advance(self, sample: Sample, branch: Branch, latents: Array, events: list[Event]) -> None:
        """A forward pass of one picture is over: [16, h, w]."""
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
            sample.seconds["denoiser"] = time.perf_counter() - sample.joined
            events.append(Drawn(sample.key, self._decode(sample)))
            self._leave(sample)

    def _guide(self, sample: Sample) -> Array:
        """The step of a guided picture: both prompts' steps began at the same latents, and are linear in velocity."""
        (positive, negative), scale = (branch.output for branch in sample.branches), sample.request.guidance_scale
        assert positive is not None and negative is not None
        latents: Array = positive + np.float32(scale) * (positive - negative)
        for branch in sample.branches:
            branch.output = None
        self._seats.put_latents(sample, latents[None])
        return latents

    def _estimate(self, sample: Sample, latents: Array) -> Array | None:
        """What the picture will be like, if that is wanted after this step."""
        before, step = sample.latents, sample.done + 1
        sample.latents = latents.copy() if step + 1 in sample.previews else None
        if before is None or step not in sample.previews:
            return None
        return estimate(before.reshape(latents.shape), latents, *sample.schedule[step - 1 : step + 1])

    def _decode(self, sample: Sample) -> Drawing:
        while len(self._drawings) > self._memory.ahead:
            self._drawings.popleft().settle()  # its place in the buffers is this one's
        started = self._memory.mark()
        seated = self._seats.latents(sample)
        latents = self._memory.view("latents", seated.shape)
        self._memory.copy(latents, seated)
        drawing = Drawing(sample, self.pipeline.decode(latents), started)
        self._drawings.append(drawing)
        self._decoding.append(drawing)
        return drawing

    def _leave(self, sample: Sample) -> None:
        sample.is_gone = True
        del self._samples[sample.key]
        self._turns.remove(sample)
        self._seats.leave(sample)


def _spread(previews: int, steps: int) -> frozenset[int]:
    """Steps after which to show a picture, evenly spread, and never the last."""
    return frozenset(round(steps * (i + 1) / (previews + 1)) for i in range(previews)) - {0, steps}
