"""The graphs of a plan directory, a method for each, enqueued over the tensors of a backend's memory.

Knows names and shapes of tensors; not loops over steps, requests or files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.array import Array
from engine.backends.base import Backend
from engine.backends.memory import Memory, Readback, Tensor, TimingEvent
from engine.plan.manifest import GraphName, Manifest, Model, padded
from engine.sampling import rope
from engine.sampling.finite import require_finite
from engine.sampling.tokenizer import TokenizedPrompt


class Decoded(NamedTuple):
    """A decoded image on its way to the host."""

    image: Readback  # [1, height, width, 3] uint8
    mean: Readback  # [1] float32, of the values before they were clipped: NaN or Inf if any of them is
    done: TimingEvent  # after the decoder, before the copy to the host

    def wait(self) -> Array:
        """Return [height, width, 3] uint8, RGB.

        Raises:
            NonFiniteOutput: the decoder's values hold NaN or Inf.
        """
        require_finite(self.mean.wait(), "image")
        image: Array = self.image.wait()[0].copy()  # the buffer is reused
        return image


class Guided(NamedTuple):
    """Latents that guidance combines, [B, 16, h, w] float32 each."""

    positive: Tensor  # after a step under the prompt
    negative: Tensor  # after a step under the negative prompt
    before: Tensor  # before that step


class GraphRunner:
    """Enqueues graphs. Tensors that its methods return are valid until the next call."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.manifest = manifest
        self.backend, self.memory = backend, backend.memory
        self._rope_tables = _RopeTables(manifest.model, backend.memory)

    def encode_prompt(self, prompts: Sequence[TokenizedPrompt]) -> Tensor:
        """Enqueue the prompt encoder.

        Args:
            prompts: prompts of one padded length L.

        Returns:
            [B, L, prompt_embeds_dim] float32, valid until the next call.
        """
        model = self.manifest.model
        batch, length = len(prompts), padded(len(prompts[0].ids))
        prompt_embeds = self.memory.view("prompt_embeds", (batch, length, model.prompt_embeds_dim))
        ids = np.full((batch, length), model.prompt.pad_token_id, np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            assert padded(len(prompt.ids)) == length, "a batch has one padded length"
            row[: len(prompt.ids)] = prompt.ids
        bindings = {
            "input_ids": self.memory.write("input_ids", ids),
            "lengths": self.memory.write("lengths", np.array([len(prompt.ids) for prompt in prompts])),
            "prompt_embeds": prompt_embeds,
        }
        self._enqueue("prompt_encoder", bindings)
        return prompt_embeds

    def step(
        self, latents: Tensor, latents_next: Tensor, prompt_embeds: Tensor, sigma: Array, sigma_next: Array
    ) -> None:
        """Enqueue one Euler step of a batch: a forward pass of the denoiser.

        Args:
            latents: [B, 16, h, w] float32, before the step.
            latents_next: [B, 16, h, w] float32, written by the step.
            prompt_embeds: [B, L, prompt_embeds_dim] float32.
            sigma, sigma_next: [B] float32, noise levels before and after the step.
        """
        tables = self._rope_tables.get(latents.shape[2], latents.shape[3], prompt_embeds.shape[1])
        levels = {
            "sigma": self.memory.write("sigma", sigma),
            "sigma_next": self.memory.write("sigma_next", sigma_next),
        }
        tensors = {"latents": latents, "latents_next": latents_next, "prompt_embeds": prompt_embeds}
        self._enqueue("denoiser", tensors | levels | tables)

    def guide(self, latents: Guided, scale: Array, normalization: Array) -> Tensor:
        """Enqueue the guidance of a batch: positive + scale * (positive - negative), in bounds.

        Args:
            latents: from `guided_latents`, filled.
            scale: [B] float32.
            normalization: [B] float32, diffusers' `cfg_normalization`; 0 for no bound.

        Returns:
            [B, 16, h, w] float32, valid until the next call.
        """
        guided = self.memory.view("latents_guided", latents.positive.shape)
        written = {
            "guidance_scale": self.memory.write("guidance_scale", scale),
            "cfg_normalization": self.memory.write("cfg_normalization", normalization),
        }
        tensors = {f"latents_{name}": tensor for name, tensor in latents._asdict().items()}
        self._enqueue("guidance", tensors | written | {"latents_guided": guided})
        return guided

    def guided_latents(self, shape: tuple[int, ...]) -> Guided:
        """Return the inputs of guidance for a batch of shape [B, 16, h, w]."""
        return Guided(*(self.memory.view(f"latents_{name}", shape) for name in Guided._fields))

    def encode_image(self, init_image: Array, posterior_noise: Array) -> Tensor:
        """Enqueue the VAE encoder for one image.

        Args:
            init_image: [height, width, 3] uint8, RGB.
            posterior_noise: [1, 16, h, w] float32, a standard normal sample.

        Returns:
            [1, 16, h, w] float32 in the tensor `image_latents`, valid until the next call or the next blend.
        """
        image_latents = self.memory.view("image_latents", posterior_noise.shape)
        tensors = {
            "init_image": self.memory.write("init_image", init_image[None]),
            "posterior_noise": self.memory.write("posterior_noise", posterior_noise),
        }
        self._enqueue("vae_encoder", tensors | {"image_latents": image_latents})
        return image_latents

    def blend(
        self, latents_to_blend: Tensor, image_latents: Tensor, noise: Tensor, mask: Tensor, sigma: Tensor
    ) -> Tensor:
        """Enqueue the blend of a batch: latents where the mask is 1, the image at a noise level where it is 0.

        Args:
            latents_to_blend, image_latents, noise: [B, 16, h, w] float32, in the tensors of these names.
            mask: [B, 1, h, w] float32 of zeros and ones, in the tensor `mask`.
            sigma: [B] float32, noise level of the result, in the tensor `blend_sigma`.

        Returns:
            [B, 16, h, w] float32, valid until the next call. Latents that the mask leaves out may have any value, NaN
            included.
        """
        blended = self.memory.view("latents_blended", image_latents.shape)
        tensors = {
            "latents_to_blend": latents_to_blend,
            "image_latents": image_latents,
            "noise": noise,
            "mask": mask,
            "blend_sigma": sigma,
        }
        self._enqueue("blend", tensors | {"latents_blended": blended})
        return blended

    def add_noise(self, image_latents: Tensor, noise: Tensor, sigma: Array) -> Tensor:
        """Enqueue the first latents of a batch of init images: (1 - sigma) * image_latents + sigma * noise.

        Args:
            image_latents, noise: [B, 16, h, w] float32, in the tensors of these names.
            sigma: [B] float32.

        Returns:
            [B, 16, h, w] float32, valid until the next blend.
        """
        batch, _, h, w = noise.shape
        nothing = self.memory.write("mask", np.zeros((batch, 1, h, w), np.float32))
        level = self.memory.write("blend_sigma", sigma)
        return self.blend(self.memory.view("latents_to_blend", noise.shape), image_latents, noise, nothing, level)

    def decode(self, latents: Tensor, index: int = 0) -> Decoded:
        """Enqueue the decoding of one image of [B, 16, h, w] latents."""
        scale = self.manifest.model.vae_scale
        sample = self.memory.row(latents, index)
        _, _, h, w = sample.shape
        image, mean = self.memory.view("image", (1, h * scale, w * scale, 3)), self.memory.view("image_mean", (1,))
        self._enqueue("vae_decoder", {"latents": sample, "image": image, "image_mean": mean})
        done = self.memory.record_event()  # before the copies, which then wait for it
        return Decoded(self.memory.read(image), self.memory.read(mean), done)

    def _enqueue(self, graph: GraphName, bindings: dict[str, Any]) -> None:
        for spec in self.manifest.graphs[graph].outputs:
            self.memory.prepare_write(bindings[spec.name])
        self.backend.engines[graph].enqueue(self.memory.stream, bindings)


class _RopeTables:
    """Rotary tables in memory, written only when the size or the prompt length changes."""

    def __init__(self, model: Model, memory: Memory) -> None:
        self._model, self._memory = model, memory
        self._key: tuple[int, int, int] | None = None  # h, w and length of the tables in memory
        self._tables: dict[str, Tensor] = {}

    def get(self, h: int, w: int, length: int) -> dict[str, Tensor]:
        """Return the tables of [h, w] latents with a padded prompt length."""
        model = self._model
        if self._key != (h, w, length):
            self._key = None
            cos, sin = rope.tables(model.rope, h // model.patch_size, w // model.patch_size, length)
            self._tables = {
                "rope_cos": self._memory.write("rope_cos", cos),
                "rope_sin": self._memory.write("rope_sin", sin),
            }
            self._key = (h, w, length)
        return self._tables
