"""The client that a request is counted for."""

import pytest
from starlette.requests import HTTPConnection

from server.api.client import NO_ADDRESS, client_of, network_of


@pytest.mark.parametrize(
    ("addresses", "network"),
    [
        (["192.0.2.1", "::ffff:192.0.2.1", "::FFFF:c000:201"], "192.0.2.1"),
        (["2001:db8:0:1::1", "2001:DB8::1:ffff:0:0:1", "2001:db8:0:1::2%eth0"], "2001:db8:0:1::/64"),
        (["::1"], "::/64"),
        (["", "unknown", "192.0.2", "192.0.2.1:80", "a" * 10_000, "testclient"], NO_ADDRESS),
    ],
)
def test_spellings_of_one_network_are_one_client(addresses: list[str], network: str) -> None:
    assert {network_of(address) for address in addresses} == {network}


def test_neighbouring_networks_are_two_clients() -> None:
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8:0:2::1")
    assert network_of("192.0.2.1") != network_of("192.0.2.2")


def test_owner_comes_before_the_address() -> None:
    known, unknown = (HTTPConnection({"type": "http", "client": client}) for client in (("192.0.2.1", 5), None))
    assert client_of(known, "owner") == client_of(unknown, "owner") == "owner"
    assert client_of(known, None) == "192.0.2.1"
    assert client_of(unknown, None) == NO_ADDRESS
