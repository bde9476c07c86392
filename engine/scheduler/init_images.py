"""Image latents, noise and masks of samples that begin with an image, between the graphs and the samples' slots.

Knows how such samples begin and what follows each of their steps; not which sample runs when.
"""

import time
from collections.abc import Sequence

import numpy as np

from engine.array import Array
from engine.backends.memory import Tensor
from engine.pipeline import Pipeline
from engine.sampling.noise import Generator
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch
from engine.scheduler.slot_tensors import SlotTensors


class InitImages:
    """The init images of samples on a pipeline.

    All samples of a batch share one run of the blend, and one write of noise, masks and sigmas: a write for each sample
    would wait for the device.
    """

    def __init__(self, pipeline: Pipeline, slots: SlotTensors) -> None:
        self._pipeline, self._memory, self._slots = pipeline, pipeline.memory, slots

    def start(self, samples: Sequence[Sample]) -> Tensor:
        """Encode the init images of new samples of one size, and write the samples' first latents to their slots.

        Returns:
            [S, 16, h, w], the first latents, valid until the next blend.
        """
        noise = np.concatenate([self._encode(sample) for sample in samples])
        sigmas = np.array([sample.schedule[0] for sample in samples])
        noise_tensor = self._memory.write("noise", noise)
        first = self._pipeline.add_noise(self._image_latents(samples), noise_tensor, sigmas)
        for row, sample in enumerate(samples):
            self._slots.copy_latents(sample, self._memory.row(first, row))
            if sample.is_inpainted:
                self._memory.copy(self._slots.noise(sample), self._memory.row(noise_tensor, row))
        if inpainted := [sample for sample in samples if sample.is_inpainted]:
            self._write_masks(inpainted)
        return first

    def blend(self, batch: Batch, samples: Sequence[Sample]) -> Tensor:
        """Enqueue the blend of inpainted samples whose step ends with this batch's pass, and write it to their slots.

        The noise levels are those that the pass was given: a write of others would wait for the device.

        Returns:
            [S, 16, h, w], the latents after the step, valid until the next blend.
        """
        slots, rows = self._slots, {forward.sample: row for row, forward in enumerate(batch.passes)}
        sigma_next = self._memory.view("sigma_next", (len(batch),))
        blended = self._pipeline.blend(
            self._gather("latents_to_blend", [slots.latents(sample, sample.branches[0]) for sample in samples]),
            self._image_latents(samples),
            self._gather("noise", [slots.noise(sample) for sample in samples]),
            self._gather("mask", [slots.mask(sample) for sample in samples]),
            self._gather("blend_sigma", [self._memory.row(sigma_next, rows[sample]) for sample in samples]),
        )
        for row, sample in enumerate(samples):
            slots.copy_latents(sample, self._memory.row(blended, row))
        return blended

    def _encode(self, sample: Sample) -> Array:
        """Enqueue the encoding of a sample's init image, and return the noise of its first latents, [1, 16, h, w]."""
        assert sample.init_image is not None
        started = time.perf_counter()
        generator, shape = Generator(sample.request.seed), self._latents_shape(sample)
        image_latents = self._pipeline.encode_image(sample.init_image.pixel_array(), generator.randn(shape))
        self._memory.copy(self._slots.image_latents(sample), image_latents)
        noise = generator.randn(shape)
        sample.record(vae_encoder=time.perf_counter() - started)
        return noise

    def _write_masks(self, samples: Sequence[Sample]) -> None:
        scale = self._pipeline.manifest.model.vae_scale
        values = [sample.init_image.latents_mask(scale) for sample in samples if sample.init_image is not None]
        masks = self._memory.write("mask", np.stack(values)[:, None])
        for row, sample in enumerate(samples):
            self._memory.copy(self._slots.mask(sample), self._memory.row(masks, row))

    def _image_latents(self, samples: Sequence[Sample]) -> Tensor:
        return self._gather("image_latents", [self._slots.image_latents(sample) for sample in samples])

    def _gather(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Copy tensors with a batch dimension of 1 to the rows of a batch, and return it."""
        batch = self._memory.view(name, (len(tensors), *tensors[0].shape[1:]))
        for row, tensor in enumerate(tensors):
            self._memory.copy(self._memory.row(batch, row), tensor)
        return batch

    def _latents_shape(self, sample: Sample) -> tuple[int, int, int, int]:
        return self._pipeline.manifest.model.latents_shape(sample.size)
