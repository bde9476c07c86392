"""Execution of batches: prompts, forward passes and decoding, enqueued on a pipeline.

A sample that has begun keeps its latents and prompt_embeds in slots. For a forward pass they are copied to the tensors
that the engines are bound to, and the latents are copied back. So every step can have another batch, while neither
addresses nor CUDA graphs change. A guided sample has latents in the slots of both branches; after the second of its two
passes a graph combines them. After each step of an inpainted sample, another graph puts its image back around the mask.
On a GPU all this takes microseconds and the host does not wait for it: it learns of a
step while the next one runs.

Knows engines, tensors and events; not which batch is next.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine.array import Array
from engine.backends.memory import Readback, Tensor, TimingEvent
from engine.errors import NonFiniteOutput
from engine.pipeline import Pipeline
from engine.request import LoraChoice
from engine.sampling.finite import require_finite
from engine.sampling.preview import estimate
from engine.scheduler.init_images import InitImages
from engine.scheduler.lora_registry import LoraRegistry
from engine.scheduler.pending_image import PendingImage
from engine.scheduler.prompt_cache import CachedPromptEncoder, PromptCache
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch
from engine.scheduler.slot_tensors import SlotTensors
from engine.scheduler.step_loop import BatchResult, StepResult


@dataclass(frozen=True, slots=True)
class _RunningBatch:
    batch: Batch
    stepped: Sequence[Sample]  # their step is over with the batch, in every branch
    latents: Readback  # [B, 16, h, w]; after guidance and blend for samples that stepped
    first_latents: tuple[Sequence[Sample], Readback] | None  # [S, 16, h, w] of init images, if a preview needs them
    started: TimingEvent  # before the prompts and init images that the batch needs
    encoded: TimingEvent  # before the forward pass
    done: TimingEvent
    decoded: Sequence[PendingImage]  # before the batch, and not charged yet


class Executor:
    """Runs batches on a pipeline that it has to itself."""

    def __init__(self, pipeline: Pipeline, loras: LoraRegistry, prompt_cache: PromptCache) -> None:
        self._pipeline, self._memory, self._loras = pipeline, pipeline.memory, loras
        self._encoder = CachedPromptEncoder(pipeline, prompt_cache)
        self._slots = SlotTensors(pipeline.memory, pipeline.manifest.model)
        self._init_images = InitImages(pipeline, self._slots)
        self._running: deque[_RunningBatch] = deque()
        self._pending_images: deque[PendingImage] = deque()  # pixels may still be in the buffers
        self._uncharged: list[PendingImage] = []  # decoded since the last batch

    @property
    def running(self) -> int:
        """Batches that are enqueued and not waited for."""
        return len(self._running)

    @property
    def max_ahead(self) -> int:
        """Batches that may run while the next one is prepared."""
        return self._memory.max_ahead

    def change_lora(self, lora: LoraChoice | None) -> Iterator[None]:
        """Apply a LoRA, in portions, as the iterator is advanced; nothing else may run. None restores the plans.

        Raises:
            LoraMismatch: the LoRA cannot be used now; nothing was changed.
            PlanCorrupt: see `Pipeline.refit`.
        """
        yield from self._loras.apply(lora)
        for pending in self._uncharged:  # charged to nobody; settled before their timing events are reused
            pending.settle()
        self._uncharged.clear()

    def enqueue(self, batch: Batch) -> None:
        """Enqueue a batch, with the prompts, noise and init images of samples that begin with it."""
        started = self._memory.record_event()
        first_latents = self._fill_slots([sample for sample in batch.samples if sample.first_pass_at is None])
        encoded = self._memory.record_event()
        latents_next = self._enqueue_pass(batch)
        stepped = [sample for sample in batch.samples if sample.is_step_complete]
        last = {forward.sample: forward for forward in batch.passes}
        if guided := [sample for sample in stepped if sample.is_guided(last[sample].step)]:
            self._replace_rows(latents_next, batch, guided, self._enqueue_guidance(batch, guided))
        if inpainted := [sample for sample in stepped if sample.is_inpainted]:
            self._replace_rows(latents_next, batch, inpainted, self._init_images.blend(batch, inpainted))
        done = self._memory.record_event()  # before the copy to the host, which then waits for it
        latents = self._memory.read(latents_next)
        self._running.append(
            _RunningBatch(batch, stepped, latents, first_latents, started, encoded, done, self._uncharged)
        )
        self._uncharged = []

    def wait(self) -> BatchResult:
        """Wait for the oldest running batch. Its arrays are valid until the next call of `enqueue`."""
        running = self._running.popleft()
        latents = running.latents.wait()
        batch, seconds = running.batch, running.encoded.seconds_until(running.done)
        share = running.started.seconds_until(running.done) / len(batch)
        charges = [(forward.sample, share) for forward in batch.passes]
        charges += [(pending.sample, pending.decoding_seconds()) for pending in running.decoded]
        self._encoder.cache_last()
        if running.first_latents is not None:
            for sample, row in zip(running.first_latents[0], running.first_latents[1].wait(), strict=True):
                sample.latents = row.copy() if 1 in sample.previews else None
        return BatchResult(batch, seconds, charges, self._step_results(running, latents, seconds / len(batch)))

    def decode(self, sample: Sample) -> PendingImage:
        """Enqueue the decoding of a sample whose last step is over."""
        assert sample.first_pass_at is not None
        sample.record(denoiser=time.perf_counter() - sample.first_pass_at)
        while len(self._pending_images) > self._memory.max_ahead:
            self._pending_images.popleft().settle()  # this image needs its place in the buffers
        started = self._memory.record_event()
        source = self._slots.latents(sample, sample.branches[0])
        latents = self._memory.view("latents", source.shape)
        self._memory.copy(latents, source)
        pending = PendingImage(sample, self._pipeline.decode(latents), started)
        self._pending_images.append(pending)
        self._uncharged.append(pending)
        return pending

    def _fill_slots(self, samples: Sequence[Sample]) -> tuple[Sequence[Sample], Readback] | None:
        """Fill the slots of samples that begin, and return the first latents that previews need from the device."""
        for sample in samples:
            started = time.perf_counter()
            for branch in sample.branches:
                prompt_embeds = self._encoder.encode(branch.prompt, sample.request.lora_choice)
                self._memory.copy(self._slots.prompt_embeds(branch), prompt_embeds)
            sample.first_pass_at = time.perf_counter()
            sample.record(prompt_encoder=sample.first_pass_at - started)
            if sample.init_image is None:
                sample.latents = self._pipeline.noise(sample.request.seed, sample.size)
                self._slots.write_latents(sample, sample.latents)
        edited = [sample for sample in samples if sample.init_image is not None]
        first_latents = self._init_images.start(edited) if edited else None
        for sample in edited:
            sample.first_pass_at = time.perf_counter()
        if first_latents is None or not any(1 in sample.previews for sample in edited):
            return None
        return edited, self._memory.read(first_latents)

    def _enqueue_pass(self, batch: Batch) -> Tensor:
        """Enqueue a forward pass and return its output, [B, 16, h, w]."""
        memory, model = self._memory, self._pipeline.manifest.model
        shape = (len(batch), *model.latents_shape(batch.size)[1:])
        latents, latents_next = memory.view("latents", shape), memory.view("latents_next", shape)
        prompt_embeds = memory.view("prompt_embeds", (len(batch), batch.prompt_length, model.prompt_embeds_dim))
        for row, (sample, branch, _) in enumerate(batch.passes):
            memory.copy(memory.row(latents, row), self._slots.latents(sample, branch))
            memory.copy(memory.row(prompt_embeds, row), self._slots.prompt_embeds(branch))
        levels = np.array([sample.schedule[step : step + 2] for sample, _, step in batch.passes])  # [B, 2]
        self._pipeline.step(latents, latents_next, prompt_embeds, levels[:, 0], levels[:, 1])
        for row, (sample, branch, _) in enumerate(batch.passes):
            memory.copy(self._slots.latents(sample, branch), memory.row(latents_next, row))
        return latents_next

    def _enqueue_guidance(self, batch: Batch, samples: Sequence[Sample]) -> Tensor:
        """Combine the branches of samples in their slots, and return the result, [S, 16, h, w].

        All samples share one run of the graph: a write of its scales for each would wait for the device.
        """
        memory, manifest, model = self._memory, self._pipeline.manifest, self._pipeline.manifest.model
        shape = model.latents_shape(batch.size)[1:]
        latents = memory.view("latents", (len(batch), *shape))  # still those before the step
        before = {forward.sample: row for row, forward in enumerate(batch.passes)}
        sides = self._pipeline.guided_latents((len(samples), *shape))
        for row, sample in enumerate(samples):
            for side, branch in zip((sides.positive, sides.negative), sample.branches, strict=True):
                memory.copy(memory.row(side, row), self._slots.latents(sample, branch))
            memory.copy(memory.row(sides.before, row), memory.row(latents, before[sample]))
        scales = np.array([sample.request.guidance(manifest) for sample in samples], np.float32)
        bounds = np.array([sample.request.cfg_normalization for sample in samples], np.float32)
        guided = self._pipeline.guide(sides, scales, bounds)
        for row, sample in enumerate(samples):
            self._slots.copy_latents(sample, memory.row(guided, row))
        return guided

    def _replace_rows(self, latents_next: Tensor, batch: Batch, samples: Sequence[Sample], latents: Tensor) -> None:
        """Copy the latents of samples, [S, 16, h, w], to their rows of a batch's output."""
        rows = {sample: self._memory.row(latents, row) for row, sample in enumerate(samples)}
        for row, forward in enumerate(batch.passes):
            if forward.sample in rows:
                self._memory.copy(self._memory.row(latents_next, row), rows[forward.sample])

    def _step_results(self, running: _RunningBatch, latents: Array, seconds: float) -> list[StepResult]:
        """Return the steps that a batch has finished, and those that failed.

        Args:
            latents: [B, 16, h, w] after the pass and guidance.
            seconds: share of each row.
        """
        results: dict[Sample, StepResult] = {}
        for forward, row in zip(running.batch.passes, latents, strict=True):
            sample = forward.sample
            if sample.is_removed:
                continue
            sample.record(passes=sample.seconds.passes + seconds)
            try:
                require_finite(row, f"latents after step {forward.step + 1} of {sample.steps}")
            except NonFiniteOutput as error:
                results[sample] = StepResult(sample, error=error)
                continue
            if sample in running.stepped and sample not in results:  # both rows of a guided sample hold its latents
                results[sample] = StepResult(sample, _estimate_for_preview(sample, forward.step + 1, row))
        return list(results.values())


def _estimate_for_preview(sample: Sample, step: int, latents: Array) -> Array | None:
    """Return an estimate [16, h, w] of the final latents if a preview is wanted after this step.

    Args:
        step: the step that is over, counted from 1.
        latents: [16, h, w] after it. They are copied if the next step's preview needs them.
    """
    before = sample.latents
    sample.latents = latents.copy() if step + 1 in sample.previews else None
    if before is None or step not in sample.previews:
        return None
    return estimate(before.reshape(latents.shape), latents, *sample.schedule[step - 1 : step + 1])
