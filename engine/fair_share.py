"""Equal shares of time for several users: weighted fair queueing (Demers, Keshav and Shenker, SIGCOMM 1989).

Knows users and what they have spent; not what is queued.
"""

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

User = TypeVar("User", bound=Hashable)

MAX_ABSENT = 64  # users without work that are remembered until the others have caught up


class FairShare(Generic[User]):
    """The time that each user has spent. Whoever has spent least comes next.

    A user that arrives, or comes back, starts with the time that it would have spent if it had always been there. So
    it gets no credit for its absence, and does not wait for all that others have queued. Costs have any unit.

    Attributes:
        users: number of pieces of work by user.
    """

    def __init__(self) -> None:
        self.users: Counter[User] = Counter()
        self._now = 0.0  # what a user would have spent that had always been there
        self._spent: dict[User, float] = {}

    def spent(self, user: User) -> float:
        """Return what a user has spent."""
        spent = self._spent.get(user, 0.0)
        return spent if user in self.users else max(spent, self._now)

    def add(self, user: User) -> None:
        """Note that a user has one more piece of work."""
        self._spent[user] = self.spent(user)
        self.users[user] += 1

    def remove(self, user: User) -> None:
        """Note that a piece of work is over, or was cancelled."""
        self.users[user] -= 1
        if self.users[user] <= 0:
            del self.users[user]
        if len(self._spent) > len(self.users) + MAX_ABSENT:
            self._spent = {
                name: spent for name, spent in self._spent.items() if name in self.users or spent > self._now
            }

    def charge(self, user: User, cost: float) -> None:
        """Charge a user, also after its last piece of work."""
        self._spent[user] = self.spent(user) + cost
        self._now += cost / max(len(self.users), 1)
