"""The client of a request, by which rates and shares are counted. Knows owners and addresses; not what is counted."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.requests import HTTPConnection

NO_ADDRESS = "no address"  # of all clients whose address is unknown, or is not an address
HOST_BITS = 64  # of an IPv6 address; one customer of a provider usually has them all


def client_of(connection: HTTPConnection, owner: str | None) -> str:
    """Return the name of the client of a request: its owner, or else its network."""
    return owner or network_of(connection.client.host if connection.client else "")


def network_of(address: str) -> str:
    """Return an IPv4 address, the /64 network of an IPv6 address, or `NO_ADDRESS`."""
    match parsed(address):
        case None:
            return NO_ADDRESS
        case IPv4Address() as found:
            return str(found)
        case IPv6Address() as found:
            return f"{IPv6Address(int(found) >> HOST_BITS << HOST_BITS)}/{128 - HOST_BITS}"


def parsed(address: str) -> IPv4Address | IPv6Address | None:
    """Parse an address; ::ffff:192.0.2.1, which a socket for both families reports, becomes 192.0.2.1."""
    try:
        found = ip_address(address)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
