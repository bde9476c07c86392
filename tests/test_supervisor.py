"""How patient the server is with workers."""

from server.supervisor import MAX_BACKOFF, Patience


def test_a_worker_that_fails_all_night_is_started_again_in_the_morning() -> None:
    pauses = [Patience(backoff=0.5).pause(failed) for failed in range(5000)]
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[10:] == [MAX_BACKOFF] * 4990
