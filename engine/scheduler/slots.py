"""Where pictures that are under way keep their latents and captions between two passes.

Knows who has which seat; not whose turn it is, nor when a pass runs.
"""

from engine.backends.memory import Array, Memory, Tensor, seat
from engine.plan.manifest import Model
from engine.scheduler.sample import Branch, Sample


class Seats:
    """The seats of a memory: a picture takes one for each of its prompts."""

    def __init__(self, memory: Memory, model: Model) -> None:
        self._memory, self._model = memory, model
        self._free = list(range(memory.seats))

    @property
    def are_free(self) -> bool:
        """Whether nobody has one."""
        return len(self._free) == self._memory.seats

    def take(self, sample: Sample) -> bool:
        """Gives a picture its seats; False if too few are free."""
        if len(self._free) < len(sample.branches):
            return False
        for branch in sample.branches:
            branch.seat = self._free.pop()
        return True

    def leave(self, sample: Sample) -> None:
        """What still runs for the picture comes before whatever is put there."""
        self._free += [branch.seat for branch in sample.branches if branch.seat is not None]

    def latents(self, sample: Sample) -> Tensor:
        """[1, 16, h, w], in the seat of its first branch."""
        height, width = sample.size
        shape = (1, self._model.latent_channels, height // self._model.vae_scale, width // self._model.vae_scale)
        return self._view("latents", sample.branches[0], shape)

    def put_latents(self, sample: Sample, values: Array) -> None:
        """[1, 16, h, w]."""
        self._memory.copy(self.latents(sample), self._memory.write("latents", values))

    def caption(self, branch: Branch) -> Tensor:
        """[1, L, caption_dim]."""
        return self._view("caption", branch, (1, branch.length, self._model.caption_dim))

    def _view(self, name: str, branch: Branch, shape: tuple[int, ...]) -> Tensor:
        assert branch.seat is not None
        return self._memory.view(seat(name, branch.seat), shape)
