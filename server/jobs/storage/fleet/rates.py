"""Rates of clients, which all replicas of a fleet count together. Knows names of clients; no requests."""

from server.jobs.storage.databases.database import Database

MIN_WAIT = 0.001  # seconds, of a client that must wait


class SharedRates:
    """Limits the rate of each client over the whole fleet; see `RateLimiter`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def hit(self, client: str, amount: int, seconds: int) -> float:
        """Count a request of a client, which may send `amount` in `seconds`.

        Returns:
            0, or the seconds until the next request is allowed; then this one does not count.
        """
        interval = seconds / amount
        counted = self._database.rows(
            "INSERT INTO rates AS known (client, due) VALUES (?, {now} + ?) ON CONFLICT (client) DO UPDATE"
            " SET due = greatest(known.due, {now}) + ? WHERE greatest(known.due, {now}) + ? <= {now} + ? RETURNING due",
            *(client, interval, interval, interval, seconds),
        )
        if counted:
            return 0.0
        due = self._database.rows("SELECT due - {now} AS seconds FROM rates WHERE client = ?", client)
        return max(MIN_WAIT, due[0]["seconds"] + interval - seconds) if due else MIN_WAIT  # none: it was just pruned

    def prune(self) -> None:
        """Forget the clients that have all their requests again."""
        self._database.execute("DELETE FROM rates WHERE due < {now}")
