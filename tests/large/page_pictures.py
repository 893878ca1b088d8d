"""Pictures of the page for docs/: python tests/large/page_pictures.py BUNDLE MEMORY LOW HIGH [QUESTION]

A question is asked at MEMORY, then with budgets of LOW and HIGH MiB. Writes docs/page-*.png, with 256 colours.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
sys.path.insert(0, str(HERE / "tests"))

from page_driver import ask, greedily, program, serving  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

QUESTION = "Write a short Python function that reverses the words of a sentence, then explain it in one sentence."


def move(page: Any, budget: str) -> None:
    slider = page.get_by_label("Memory budget in MiB")
    slider.evaluate("""(slider, value) => {
        slider.value = value;
        slider.dispatchEvent(new Event('input', { bubbles: true }));
        slider.dispatchEvent(new Event('change', { bubbles: true }));
    }""", budget)


def save(page: Any, name: str) -> None:
    """A picture of less than 150 KB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        page.screenshot(path=path)
        subprocess.run(["pngquant", "--force", "--strip", "--output", HERE / "docs" / name, path], check=True)
    print(name, (HERE / "docs" / name).stat().st_size)


def main(bundle: str, memory: str, low: str, high: str, question: str = QUESTION) -> None:
    with sync_playwright() as playwright, serving(Path(bundle), "--memory", memory) as address:
        browser = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 860}, color_scheme="light")
        page.set_default_timeout(300_000)
        page.goto(address)
        greedily(page, 220)
        ask(page, question)
        move(page, low)
        page.locator(".answer").get_by_text(f"same answer at {low} MiB").wait_for()
        move(page, high)
        page.wait_for_function("() => document.querySelector('.answer .facts')?.textContent.includes('asked again')")
        page.wait_for_timeout(4000)
        save(page, "page-again.png")
        page.locator(".answer").get_by_text(f"same answer at {high} MiB").wait_for()
        page.get_by_role("button", name="Dark or light").click()
        page.mouse.move(600, 700)
        page.wait_for_timeout(300)
        save(page, "page-dark.png")
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(600)
        save(page, "page-phone-dark.png")
        page.get_by_role("button", name="Dark or light").click()
        page.get_by_role("button", name="Dashboard").click()
        page.mouse.move(10, 800)
        page.wait_for_timeout(600)
        save(page, "page-phone-dashboard.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
