"""A server for the tests of a module, and its clients."""

from collections.abc import Iterator

import httpx
import openai
import pytest
from fakes.loop import FakeLoop
from fakes.server import official_client, serving


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    return FakeLoop()


@pytest.fixture(scope="module")
def base_url(fake: FakeLoop) -> Iterator[str]:
    with serving(fake) as url:
        yield url


@pytest.fixture(scope="module")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with official_client(base_url) as client:
        yield client
