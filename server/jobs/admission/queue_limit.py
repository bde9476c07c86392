"""The bound on unfinished jobs, and the part of it that one client can have. Knows numbers; no jobs."""

from collections.abc import Callable

from server.errors import QueueFull

SHARE = 3  # times the free places: a client with more jobs must wait, so that others always find a place


def check_queue(taken: int, own: int, limit: int, retry_after: Callable[[], float]) -> None:
    """Raise QueueFull if a client cannot have one more job.

    A client may have SHARE times as many jobs as there are free places, as in the dynamic thresholds of Choudhury and
    Hahne (IEEE/ACM Transactions on Networking, 1998).

    Args:
        taken, own: unfinished jobs of all clients, and of this one.
        limit: unfinished jobs at most.
        retry_after: returns the seconds after which the client may try again.
    """
    free = limit - taken
    if free <= 0:
        raise QueueFull(f"The queue is full, with {taken} unfinished jobs; try again later.", retry_after(), taken, own)
    if own >= SHARE * free:
        message = f"{own} of your jobs are unfinished; the last places are for other clients. Try again later."
        raise QueueFull(message, retry_after(), taken, own)
