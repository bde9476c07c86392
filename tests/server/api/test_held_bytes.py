"""Memory for large bodies: bounded for all clients together, with room left for others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.held_bytes import SHARE, HeldBytes
from server.errors import UploadsBusy


def test_small_bodies_always_find_room() -> None:
    held = HeldBytes(most=100, free=10)
    with held.reading("a") as large:
        large.grow(75 + 10)
        for number in range(1000):
            with held.reading(f"{number}") as small:
                small.grow(10)
        with pytest.raises(UploadsBusy):
            large.grow(76 + 10)


def test_body_over_the_limit_is_refused_with_a_time_to_come_again() -> None:
    held = HeldBytes(most=100, free=0)
    with held.reading("a") as body, pytest.raises(UploadsBusy) as refusal:
        body.grow(101)
    assert refusal.value.retry_after == 5


def test_bytes_are_free_again_at_the_end_of_a_body_that_failed_too() -> None:
    held = HeldBytes(most=100, free=0)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), held.reading("a") as body:
            body.grow(30)
            body.grow(75)
            raise ValueError("broken")


def test_one_client_leaves_room_for_another() -> None:
    held = HeldBytes(most=100, free=0)
    with held.reading("a") as first, held.reading("a") as second, held.reading("b") as other:
        first.grow(40)
        second.grow(35)
        with pytest.raises(UploadsBusy):
            second.grow(36)
        other.grow(18)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=30))
def test_never_more_than_the_limit_and_no_client_more_than_its_share(sizes: list[tuple[int, int]]) -> None:
    held = HeldBytes(most=100, free=0)
    bodies = []
    for client, size in sizes:
        reading = held.reading(str(client))
        body = reading.__enter__()
        try:
            body.grow(size)
        except UploadsBusy:
            reading.__exit__(None, None, None)
        else:
            bodies.append((reading, body))
        counted = {name: sum(b.counted for _, b in bodies if b.client == name) for name in "0123"}
        assert sum(counted.values()) <= 100
        assert all(each <= 100 * SHARE / (SHARE + 1) for each in counted.values())
    for reading, _ in bodies:
        reading.__exit__(None, None, None)
    with held.reading("0") as body:
        body.grow(75)
