"""Choosing a model in the page."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fake_models import DEFAULT, OTHER, Machine, doing, settled
from page_driver import ask, finished, greedily, kept, says
from served import Server

pytestmark = pytest.mark.xdist_group("page")
PHONE = {"viewport": {"width": 360, "height": 640}}


@pytest.fixture
def own(machine: Machine) -> Iterator[Server]:
    """`edgert web` with the default model."""
    server = machine.web(None, "-c", "256").until_ready()
    settled(server)
    yield server
    assert server.end() == 0 and "Traceback" not in server.said, server.said


def opened(browse: Any, server: Server, **settings: Any) -> Any:
    page = browse(server.url, **settings)
    page.get_by_role("button", name="Choose another").wait_for()
    return page


def choose(page: Any, what: str) -> None:
    """Open the chooser and press a button in it, with the keyboard alone."""
    page.get_by_role("button", name="Choose another").focus()
    page.keyboard.press("Enter")
    button = page.get_by_role("dialog").get_by_role("button", name=what)
    button.wait_for()
    for _ in range(10):
        if button.evaluate("node => node === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")


def test_edgert_serve_lets_nobody_choose(page: Any) -> None:
    assert page.locator(".model").inner_text() and page.get_by_role("button", name="Choose another").count() == 0


@pytest.mark.parametrize("settings", [{}, PHONE, {"color_scheme": "dark"}], ids=["desktop", "phone", "dark"])
def test_one_is_fetched_and_used(own: Server, browse: Any, machine: Machine, settings: dict[str, Any]) -> None:
    page = opened(browse, own, **settings)
    machine.hub.go_on.clear()
    choose(page, f"Download: {OTHER}")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(re.compile(r"^downloading \d\.\d MB of \d\.\d MB$")).wait_for()
    assert dialog.get_by_role("progressbar").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("Escape")
    strip = page.get_by_role("region", name="The model that was chosen")
    assert OTHER in strip.inner_text() and "downloading" in strip.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    machine.hub.go_on.set()
    page.get_by_role("button", name=f"Model: {OTHER}.").wait_for()
    strip.wait_for(state="detached")
    choose(page, f"Use: {DEFAULT}")
    page.get_by_role("button", name=f"Model: {DEFAULT}.").wait_for()
    assert dialog.count() == 0


def test_cancelled(own: Server, browse: Any, machine: Machine) -> None:
    page = opened(browse, own)
    machine.hub.go_on.clear()
    choose(page, f"Download: {OTHER}")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    dialog.get_by_role("button", name=re.compile(f"(Download|Go on): {OTHER}")).wait_for()
    assert dialog.get_by_role("alert").count() == 0
    assert settled(own)["model"] == DEFAULT


def test_what_cannot_be_loaded(own: Server, browse: Any, machine: Machine) -> None:
    (machine.models / "<i>broken.edge").write_bytes(b"no bundle")
    page = opened(browse, own)
    choose(page, "Use: <i>broken")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "<i>broken.edge: is not an edgert bundle" in alert.inner_text()
    page.get_by_role("button", name=f"Model: {DEFAULT}.").wait_for()
    page.get_by_role("button", name="Do not show this any more").click()
    alert.wait_for(state="detached")


def test_what_is_refused(own: Server, browse: Any, machine: Machine) -> None:
    """A bundle that is gone since the list was made."""
    (gone := machine.models / "gone.edge").write_bytes(b"")
    page = opened(browse, own)
    page.get_by_role("button", name="Choose another").click()
    page.get_by_role("button", name="Use: gone").wait_for()
    gone.unlink()
    page.get_by_role("button", name="Use: gone").click()
    page.get_by_text("there is no such model here any more").wait_for()


def test_another_model_has_another_answer(own: Server, browse: Any) -> None:
    """Its answer is not called different, as one with another budget would be; and the older one says whose it is."""
    page = opened(browse, own)
    says(page, "One.", "Two.")
    greedily(page)
    ask(page, "question")
    assert OTHER not in page.locator(".answer .facts").inner_text()
    choose(page, f"Download: {OTHER}")
    page.get_by_role("button", name=f"Model: {OTHER}.").wait_for()
    page.keyboard.press("Escape")
    page.locator(".answer .facts").get_by_text(DEFAULT).wait_for()
    slider = page.get_by_label("Memory budget in MiB").and_(page.locator(":enabled"))
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(1000)
    finished(page)
    (conversation,) = kept(page)
    assert conversation["messages"][-1]["model"] == DEFAULT and "runs" not in conversation["messages"][-1]


def test_the_first_start(browse: Any, machine: Machine) -> None:
    machine.hub.go_on.clear()
    server = machine.web()
    page = opened(browse, server)
    page.get_by_text("This model is being fetched").wait_for()
    page.get_by_text("downloading").wait_for()
    assert page.get_by_role("button", name="Send (Enter)").is_disabled()
    doing(server, "fetching")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("alert").wait_for()
    page.get_by_text("No model is loaded: choose one.").wait_for()
    machine.hub.go_on.set()
    choose(page, DEFAULT)
    page.get_by_label("Memory budget in MiB").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("alert").wait_for(state="detached")
    says(page, "Yes.")
    ask(page, "Is it there?")
    page.close()
    assert server.end() == 0 and "Traceback" not in server.said
