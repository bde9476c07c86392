"""Names of clients as a fleet's database keeps them. Knows no tables."""

import hashlib

BYTES = 16  # of a hash; two clients never share one


def client_hash(client: str) -> str:
    """Return the hash of a client's name, which may be an address.

    It keeps addresses out of the tables and of their copies. Whoever tries all IPv4 addresses finds the one of a hash.
    """
    return hashlib.blake2b(client.encode(), digest_size=BYTES).hexdigest()
