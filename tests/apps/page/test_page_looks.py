"""Dark and light, narrow and wide, names for those who do not see it, the server's key."""

from pathlib import Path
from typing import Any

import pytest
from page_driver import ask, says, serving

pytestmark = pytest.mark.xdist_group("page")
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, nav, aside, main, dialog[open]')].filter(
  (node) => !(node.getAttribute('aria-label') || node.getAttribute('aria-labelledby') || node.closest('label')
    || node.textContent.trim())).map((node) => node.outerHTML)"""
CONTRAST = """() => {
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const weights = [.2126, .7152, .0722];
  const light = (colour) => colour.reduce((sum, v, i) => sum + weights[i] * linear(v / 255), 0);
  const numbers = (name) => {
    const probe = document.createElement('i');
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
    probe.remove();
    return light(found);
  };
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  return ['--ink', '--soft', '--faint', '--accent', '--bad'].flatMap((ink) => ['--paper', '--panel'].map((on) =>
    [ink, on, ratio(numbers(ink), numbers(on))]));
}"""


def shows(page: Any, theme: str) -> bool:
    """Whether the page has a theme, or soon has."""
    page.locator(f"html[data-theme={theme}]").wait_for(state="attached", timeout=5000)
    return True


def test_dark_and_light(browse: Any) -> None:
    page = browse(color_scheme="dark")
    assert shows(page, "dark")
    page.emulate_media(color_scheme="light")
    assert shows(page, "light"), "it follows the system"
    page.get_by_role("button", name="Dark or light").click()
    assert shows(page, "dark")
    page.reload()
    assert shows(page, "dark"), "what was chosen stays"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_what_is_written_can_be_read(browse: Any, scheme: str) -> None:
    """4.5 to 1, as WCAG 2 wants it of text (level AA)."""
    page = browse(color_scheme=scheme)
    assert [found for found in page.evaluate(CONTRAST) if found[2] < 4.5] == []


@pytest.mark.parametrize("width", [320, 390, 760, 1024])
def test_narrow(browse: Any, width: int) -> None:
    page = browse(viewport={"width": width, "height": 760})
    says(page, "```\n" + "x" * 300 + "\n```\n\n" + "y" * 300)
    ask(page, "z" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is wider than the screen"
    assert page.locator(".answer .markdown p").bounding_box()["width"] <= width
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="New conversation").click()
    slider = page.get_by_label("Memory budget in MiB")
    if width <= 820:
        assert not slider.is_visible()
        page.get_by_role("button", name="Dashboard").click()
    slider.wait_for(state="visible")
    page.keyboard.press("Escape")
    assert page.get_by_role("textbox", name="Your question").is_visible()


def test_everything_has_a_name(page: Any) -> None:
    says(page, "```\ncode\n```")
    ask(page, "question")
    assert page.evaluate(NAMELESS) == []
    page.get_by_role("button", name="Settings").click()
    assert page.evaluate(NAMELESS) == []


def test_a_system_without_a_language(browse: Any, server: str) -> None:
    """LANG=C in a window of WebKitGTK: the page stayed empty."""
    page = browse("about:blank")
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'language', { get: () => 'C' })")
    page.goto(server)
    page.locator(".plot canvas").first.wait_for()


def test_a_server_with_a_key(browse: Any, smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a-key-of-the-test\n")
    with serving(smollm2, "--api-key-file", str(file)) as address:
        page = browse(address)
        page.get_by_role("textbox", name="Key").fill("a-key-of-the-test")
        page.get_by_role("button", name="Go on").click()
        page.get_by_label("Memory budget in MiB").wait_for()
        ask(page, "Say yes.")
        assert page.locator(".answer .error").count() == 0
        given = browse(f"{address}/#key=a-key-of-the-test")
        given.get_by_label("Memory budget in MiB").wait_for()
        assert "key" not in given.evaluate("location.href")
        page.close()
        given.close()
