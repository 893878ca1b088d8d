"""A real server with a real model, and the page in a headless Chromium.

Without Chromium these tests are skipped. On Debian: apt-get install chromium.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_driver import program, serving

REFUSED = "Failed to load resource: the server responded with a status of 4"
"""What Chromium writes of each request that the server refuses: the page tells it its own way."""


@pytest.fixture(scope="session")
def server(smollm2: Path) -> Iterator[str]:
    with serving(smollm2, "--memory", "400M") as address:
        yield address


# Not for longer than a module: while Playwright runs, this thread has an event loop, and other tests need theirs.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser. Skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if (found := program()) is None:
        pytest.skip("there is no Chromium here: apt-get install chromium, or name one in EDGERT_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any, server: str) -> Iterator[Any]:
    """Opens the page as somebody who has never been there. In the end: nothing on it was refused by its own policy, and
    nothing was asked of any other address."""
    contexts, complaints, addresses = [], [], []

    def browse(address: str = server, **settings: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1360, "height": 860}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and not message.text.startswith(REFUSED)
                and complaints.append(message.text))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(address)
        return page

    yield browse
    for context in contexts:
        context.close()
    assert not complaints
    assert all(address.startswith(("http://127.0.0.1:", "about:")) for address in addresses)


@pytest.fixture
def page(browse: Any) -> Any:
    page = browse()
    page.get_by_label("Memory budget in MiB").wait_for()
    return page
