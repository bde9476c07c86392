"""The order of work from several clients: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).

Knows clients, costs and tags; not what is queued or how long it takes.
"""


class FairOrder:
    """Tags for queued work. Done in the order of its tags, the work of every client gets an equal share.

    The tag of a client's work is the tag of its work before plus that work's cost, in any unit. A client without queued
    work gets the tag of the work that was started last. So it waits for work under way, but not for all that another
    client has queued.
    """

    def __init__(self) -> None:
        self._now = 0.0  # largest tag of work that was started
        self._next: dict[str, float] = {}  # tag of each client's next work, if that is after `_now`

    def next_tag(self, client: str) -> float:
        """Return the tag that the client's next work would get."""
        return max(self._now, self._next.get(client, 0.0))

    def add(self, client: str, cost: float) -> float:
        """Return the tag of a client's new work."""
        tag = self.next_tag(client)
        self._next[client] = tag + cost
        return tag

    def start(self, tag: float) -> None:
        """Record that work with this tag was started. Repeated calls change nothing."""
        if tag > self._now:
            self._now = tag
            self._next = {client: following for client, following in self._next.items() if following > tag}

    def withdraw(self, client: str, cost: float) -> None:
        """Give back the cost of work that was removed before it was started."""
        if client in self._next:
            self._next[client] -= cost
