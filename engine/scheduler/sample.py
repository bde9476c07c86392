"""An image between two of its steps, and the order in which images take their turns.

Knows sizes, steps and slots; not tensors' values, not time but for what it is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from engine.plan.manifest import padded
from engine.request import ImageRequest
from engine.sampling.noise import Array
from engine.sampling.tokenizer import TokenizedPrompt
from engine.size import Size
from engine.stages import StageTimes


@dataclass(slots=True, eq=False)
class GuidanceBranch:
    """One prompt of an image: its own, or with guidance the negative one."""

    prompt: TokenizedPrompt
    slot: int | None = None
    enqueued: int = 0  # forward passes
    output: Array | None = None  # [16, h, w], what a guided step is waiting for

    @property
    def length(self) -> int:
        """Prompt tokens, padded."""
        return padded(len(self.prompt.ids))


@dataclass(slots=True, eq=False)
class Sample:
    """An image from its request to its last step.

    Attributes:
        schedule: [steps + 1] float32 noise levels.
        previews: after which steps somebody wants to see it.
        came: time.perf_counter() when it was submitted.
        done: steps that are known to be over.
        latents: [16, h, w] after `done` steps, where a preview needs them.
        seconds: of the stages that are over.
    """

    key: str
    request: ImageRequest
    size: Size
    schedule: Array
    branches: tuple[GuidanceBranch, ...]
    previews: frozenset[int] = frozenset()
    came: float = 0.0
    is_started: bool = False  # and whoever listens was told
    done: int = 0
    latents: Array | None = None
    is_gone: bool = False  # cancelled or failed: what still runs for it is ignored
    seconds: StageTimes = field(default_factory=StageTimes)
    joined: float = 0.0  # time.perf_counter() at its first step

    @property
    def steps(self) -> int:
        return len(self.schedule) - 1

    def took(self, **seconds: float) -> None:
        """Record seconds by the fields of `StageTimes`."""
        self.seconds = replace(self.seconds, **seconds)

    @property
    def is_guided(self) -> bool:
        return len(self.branches) > 1

    def ready(self) -> Iterator[GuidanceBranch]:
        """Branches whose next forward pass may be enqueued: guided ones wait for each other after every step."""
        for branch in self.branches:
            if branch.enqueued < (min(self.done + 1, self.steps) if self.is_guided else self.steps):
                yield branch


Pass = tuple[Sample, GuidanceBranch]


class SizeQueue:
    """Images of one size, in the order they came."""

    def __init__(self, seconds: float) -> None:
        self.samples: list[Sample] = []
        self.seconds = seconds  # that were spent on it, as far as it competes with other lanes

    def passes(self, limit: int, *, slotted_only: bool = False) -> list[Pass]:
        """The passes to run next, of one prompt length: those of who came first, or of them who has a slot."""
        ready = [(sample, branch) for sample in self.samples for branch in sample.ready()]
        if slotted_only:
            ready = [one for one in ready if one[1].slot is not None]
        return [one for one in ready if one[1].length == ready[0][1].length][:limit]


class FairQueue:
    """Who goes next: sizes share the processor's time alike, and within a size first come is first served.

    So a small image waits for large ones no longer than for its share, and images that gain nothing from each other
    are finished one after the other instead of all of them late.
    """

    def __init__(self) -> None:
        self._lanes: dict[Size, SizeQueue] = {}
        self._away: dict[Size, float] = {}  # seconds of those that are empty
        self._reached = 0.0  # seconds that every lane had had when one became empty last

    def __iter__(self) -> Iterator[SizeQueue]:
        """Lanes, those that were given least first."""
        return iter(sorted(self._lanes.values(), key=lambda lane: lane.seconds))

    @property
    def first(self) -> Sample | None:
        """The image that came first."""
        return min((lane.samples[0] for lane in self._lanes.values()), key=lambda sample: sample.came, default=None)

    def add(self, sample: Sample) -> None:
        if sample.size not in self._lanes:
            least = self._least()
            self._away = {size: seconds for size, seconds in self._away.items() if seconds > least}
            # who was away is owed nothing, but owes what it had: else one user who asks again and again never pays
            self._lanes[sample.size] = SizeQueue(self._away.pop(sample.size, least))
        self._lanes[sample.size].samples.append(sample)

    def remove(self, sample: Sample) -> None:
        lane = self._lanes[sample.size]
        lane.samples.remove(sample)
        if not lane.samples:
            self._reached = self._least()
            self._away[sample.size] = lane.seconds
            del self._lanes[sample.size]

    def charge(self, size: Size, seconds: float) -> None:
        """Also for images that have gone by then."""
        if size in self._lanes:
            self._lanes[size].seconds += seconds
        elif size in self._away:
            self._away[size] += seconds

    def _least(self) -> float:
        return min((lane.seconds for lane in self._lanes.values()), default=self._reached)
