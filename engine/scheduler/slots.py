"""Where images that are under way keep their latents and prompts between two passes.

Knows who has which slot; not whose turn it is, nor when a pass runs.
"""

from engine.backends.memory import Array, Memory, Tensor, slot
from engine.plan.manifest import Model
from engine.scheduler.sample import GuidanceBranch, Sample


class Slots:
    """The slots of a memory: an image takes one for each of its prompts."""

    def __init__(self, memory: Memory, model: Model) -> None:
        self._memory, self._model = memory, model
        self._free = list(range(memory.slots))

    @property
    def are_free(self) -> bool:
        """Whether nobody has one."""
        return len(self._free) == self._memory.slots

    def take(self, sample: Sample) -> bool:
        """Gives an image its slots; False if too few are free."""
        if len(self._free) < len(sample.branches):
            return False
        for branch in sample.branches:
            branch.slot = self._free.pop()
        return True

    def leave(self, sample: Sample) -> None:
        """What still runs for the image comes before whatever is put there."""
        self._free += [branch.slot for branch in sample.branches if branch.slot is not None]

    def latents(self, sample: Sample) -> Tensor:
        """[1, 16, h, w], in the slot of its first branch."""
        return self._view("latents", sample.branches[0], self._model.latents_shape(sample.size))

    def put_latents(self, sample: Sample, values: Array) -> None:
        """[1, 16, h, w]."""
        self._memory.copy(self.latents(sample), self._memory.write("latents", values))

    def prompt_embeds(self, branch: GuidanceBranch) -> Tensor:
        """[1, L, prompt_embeds_dim]."""
        return self._view("prompt_embeds", branch, (1, branch.length, self._model.prompt_embeds_dim))

    def _view(self, name: str, branch: GuidanceBranch, shape: tuple[int, ...]) -> Tensor:
        assert branch.slot is not None
        return self._memory.view(slot(name, branch.slot), shape)
