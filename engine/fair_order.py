"""The order of work from several clients: weighted fair queueing (Demers, Keshav and Shenker, SIGCOMM 1989).

Knows clients and costs; not what is queued or how long it takes.
"""

from collections import Counter

MAX_ABSENT = 64  # clients without work that are remembered until their share is used up


class FairOrder:
    """Tags for queued work. Done in the order of its tags, the work of every client gets an equal share.

    A tag is the time at which the work would end if all clients were served at once, each with an equal share. So a
    client waits for another client's work only up to its own share, and small work goes before large work. Costs have
    any unit.

    Attributes:
        clients: number of pieces of work by client.
    """

    def __init__(self) -> None:
        self.clients: Counter[str] = Counter()
        self._now = 0.0
        self._ends: dict[str, float] = {}  # tag of each client's last work, if that is after `_now`

    def tag(self, client: str, cost: float) -> float:
        """Return the tag that work of a client would get now."""
        return max(self._now, self._ends.get(client, 0.0)) + cost

    def add(self, client: str, cost: float) -> float:
        """Add work of a client and return its tag."""
        self.clients[client] += 1
        self._ends[client] = self.tag(client, cost)
        return self._ends[client]

    def advance(self, cost: float) -> None:
        """Note that work was done. It may be a part of what was added."""
        self._now += cost / max(len(self.clients), 1)

    def remove(self, client: str, cost_left: float = 0.0) -> None:
        """Remove work that is over, or that was cancelled before all of it was done."""
        self.clients[client] -= 1
        self.clients += Counter()  # drops those at 0
        self._ends[client] -= cost_left
        if not self.clients:
            self._now = 0.0
            self._ends.clear()
        elif len(self._ends) > len(self.clients) + MAX_ABSENT:
            self._ends = {name: end for name, end in self._ends.items() if name in self.clients or end > self._now}
