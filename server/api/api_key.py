"""The form of API keys. Imports nothing heavy: settings are read before the server imports its endpoints."""

import re

API_KEY = re.compile(r"[!-~]{1,255}")


def check_api_key(key: str) -> str:
    """Return a key that HTTP headers can carry.

    Raises:
        ValueError: the key is empty, too long, or has other characters.
    """
    if not API_KEY.fullmatch(key):
        raise ValueError(
            "an API key must consist of 1 to 255 visible ASCII characters; HTTP headers do not carry others"
        )
    return key
