"""The order of samples under one LoRA: clients share the device's time equally, and so do the sizes of one client.

Knows samples, and the seconds that it is charged; not clocks, batches or engines.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from engine.fair_share import FairShare
from engine.scheduler.sample import Sample
from engine.size import Size

SCAN = 64  # samples of one client and size that are considered, so that a long queue does not make steps longer
WEIGHT = 0.1  # of the newest pass in the moving average


class ClientShares:
    """The device's time by client, over all LoRAs.

    Attributes:
        seconds: that each client has spent, times the `cost_factor` of its samples.
    """

    def __init__(self) -> None:
        self.seconds: FairShare[str] = FairShare()
        self._seconds_per_token = 0.0

    def end(self, sample: Sample) -> float:
        """Return what the client of a sample will have spent at its end.

        The smallest end comes first. So images of equal cost finish one after the other instead of all of them late,
        and a short image does not wait for a long one of another client.
        """
        left = self._seconds_per_token * sample.tokens_left
        return self.seconds.spent(sample.client) + sample.cost_factor * left

    def learn(self, tokens: int, seconds: float) -> None:
        """Learn from a batch."""
        measured = seconds / tokens
        before = self._seconds_per_token or measured
        self._seconds_per_token = before + WEIGHT * (measured - before)


class FairQueue:
    """Samples under one LoRA, by client and size."""

    def __init__(self, shares: ClientShares) -> None:
        self._shares = shares
        self._clients: dict[str, _ClientQueue] = {}
        self._samples: dict[Sample, None] = {}  # in the order of arrival
        self._with_slots: list[Sample] = []

    @property
    def oldest(self) -> Sample | None:
        """The sample that was submitted first."""
        return next(iter(self._samples), None)

    @property
    def first(self) -> Sample | None:
        """The first sample in order."""
        return next(self.in_order(), None)

    def add(self, sample: Sample) -> None:
        """Queue a sample."""
        self._samples[sample] = None
        self._clients.setdefault(sample.client, _ClientQueue()).add(sample)
        self._shares.seconds.add(sample.client)

    def remove(self, sample: Sample) -> None:
        """Remove a sample."""
        del self._samples[sample]
        if sample in self._with_slots:
            self._with_slots.remove(sample)
        client = self._clients[sample.client]
        client.remove(sample)
        if not client.samples:
            del self._clients[sample.client]
        self._shares.seconds.remove(sample.client)

    def take_slots(self, sample: Sample) -> None:
        """Record that a sample has its slots."""
        self._with_slots.append(sample)

    def charge(self, sample: Sample, seconds: float) -> None:
        """Charge the size of a sample for device time, also after the sample was removed."""
        if sample.client in self._clients:
            self._clients[sample.client].sizes.charge(sample.size, seconds)

    def in_order(self, size: Size | None = None) -> Iterator[Sample]:
        """Yield samples, the first first; those of one size only, if it is given."""
        clients = list(self._clients.values())
        if len(clients) > 1:
            clients.sort(key=lambda client: self._shares.end(client.first))
        for client in clients:
            yield from client.in_order(size)

    def with_slots(self) -> list[Sample]:
        """Return the samples that have slots, the first first."""
        return sorted(self._with_slots, key=self._shares.end)


class _ClientQueue:
    """Samples of one client. Its sizes share its time equally; within a size, first come is first served."""

    def __init__(self) -> None:
        self.samples: dict[Size, list[Sample]] = {}
        self.sizes: FairShare[Size] = FairShare()

    @property
    def first(self) -> Sample:
        size = min(self.samples, key=self.sizes.spent) if len(self.samples) > 1 else next(iter(self.samples))
        return self.samples[size][0]

    def add(self, sample: Sample) -> None:
        self.samples.setdefault(sample.size, []).append(sample)
        self.sizes.add(sample.size)

    def remove(self, sample: Sample) -> None:
        self.samples[sample.size].remove(sample)
        if not self.samples[sample.size]:
            del self.samples[sample.size]
        self.sizes.remove(sample.size)

    def in_order(self, size: Size | None = None) -> Iterator[Sample]:
        if size is not None:
            sizes: Iterable[Size] = (size,)
        else:
            sizes = sorted(self.samples, key=self.sizes.spent) if len(self.samples) > 1 else self.samples
        for each in sizes:
            yield from islice(self.samples.get(each, ()), SCAN)
