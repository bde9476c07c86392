"""A browser for the tests of the page, and a server with the page for each of them."""

from collections.abc import Iterator

import pytest
from fakes.chromium import Browser, browsing
from fakes.loop import FakeLoop
from fakes.server import serving


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def url() -> Iterator[str]:
    """A server whose steps take long enough to be seen. Its port, and so the browser's storage for it, is new."""
    with serving(FakeLoop(0.05), page=True) as url:
        yield url
