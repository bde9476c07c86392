"""The tensors of samples between two forward passes.

Knows where a slot's tensors are; not which sample runs when.
"""

from engine.array import Array
from engine.backends.memory import Memory, Tensor, slot_tensor
from engine.plan.manifest import Model
from engine.scheduler.sample import GuidanceBranch, Sample


class SlotTensors:
    """The tensors of the slots that samples have taken."""

    def __init__(self, memory: Memory, model: Model) -> None:
        self._memory, self._model = memory, model

    def latents(self, sample: Sample, branch: GuidanceBranch) -> Tensor:
        """Return [1, 16, h, w], the branch's latents after its last pass, or after guidance once both have passed."""
        return self._view("latents", branch, self._model.latents_shape(sample.size))

    def write_latents(self, sample: Sample, values: Array) -> None:
        """Enqueue a write of [1, 16, h, w] to every branch."""
        self.copy_latents(sample, self._memory.write("latents", values))

    def copy_latents(self, sample: Sample, source: Tensor) -> None:
        """Enqueue a copy of [1, 16, h, w] to every branch."""
        for branch in sample.branches:
            self._memory.copy(self.latents(sample, branch), source)

    def prompt_embeds(self, branch: GuidanceBranch) -> Tensor:
        """Return [1, L, prompt_embeds_dim]."""
        return self._view("prompt_embeds", branch, (1, branch.length, self._model.prompt_embeds_dim))

    def image_latents(self, sample: Sample) -> Tensor:
        """Return [1, 16, h, w], the init image of a sample that has one."""
        return self._view("image_latents", sample.branches[0], self._model.latents_shape(sample.size))

    def noise(self, sample: Sample) -> Tensor:
        """Return [1, 16, h, w], the noise of an inpainted sample."""
        return self._view("noise", sample.branches[0], self._model.latents_shape(sample.size))

    def mask(self, sample: Sample) -> Tensor:
        """Return [1, 1, h, w] of zeros and ones, the mask of an inpainted sample."""
        _, _, h, w = self._model.latents_shape(sample.size)
        return self._view("mask", sample.branches[0], (1, 1, h, w))

    def _view(self, name: str, branch: GuidanceBranch, shape: tuple[int, ...]) -> Tensor:
        assert branch.slot is not None
        return self._memory.view(slot_tensor(name, branch.slot), shape)
