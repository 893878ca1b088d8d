"""The page as a person uses it, the server behind it, and answers in place of the model's."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

CONTEXT = "1024"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str | None:
    """A Chromium: under one of its usual names, or where $EDGERT_CHROMIUM says."""
    return os.environ.get("EDGERT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[str]:
    """The address of an `edgert serve` that is ready."""
    process = subprocess.Popen([sys.executable, "-m", "edgert", "serve", bundle, "--port", "0", "-c", CONTEXT,
                                "--threads", "2", *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if line == "ready\n":
                break
        found = re.search(r"http://\S+", said[0] if said else "")
        assert found and said[-1] == "ready\n", said
        yield found[0]
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(30)


def ask(page: Any, question: str, *, wait: bool = True) -> None:
    """Ask as a person does."""
    page.get_by_role("textbox", name="Your question").fill(question)
    page.get_by_role("button", name="Send (Enter)", disabled=False).wait_for()
    page.keyboard.press("Enter")
    if wait:
        finished(page)


def finished(page: Any) -> None:
    page.get_by_role("button", name="Send (Enter)").wait_for()


def greedily(page: Any, most: int = 40) -> None:
    """Set the conversation's temperature to 0, and bound its answers."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill(str(most))
    page.get_by_role("button", name="Done").click()


def ask_for_long(page: Any, characters: int = 60) -> None:
    """Ask for a long answer, which goes on when this returns, after so many characters."""
    greedily(page, 600)
    ask(page, "Write a long story about a lighthouse.", wait=False)
    page.wait_for_function("most => document.querySelector('.answer .markdown')?.textContent.length > most",
                           arg=characters)


def kept(page: Any) -> list[dict[str, Any]]:
    """The conversations that the browser keeps, latest first."""
    page.wait_for_timeout(700)  # they are written half a second after they have changed
    values = page.evaluate("Object.entries(localStorage).filter(([k]) => k.startsWith('edgert.conversation.'))"
                           ".map(([, value]) => JSON.parse(value))")
    return sorted(values, key=lambda conversation: -conversation["changed"])


def answer_of(server: str, messages: list[dict[str, str]], **settings: Any) -> str:
    """What the server says without the page."""
    body = json.dumps({"messages": messages, **settings}).encode()
    with urlopen(Request(f"{server}/v1/chat/completions", body, {"Content-Type": "application/json"})) as response:
        content: str = json.load(response)["choices"][0]["message"]["content"]
        return content


def status_of(server: str) -> dict[str, Any]:
    with urlopen(f"{server}/edgert/status") as response:
        values: dict[str, Any] = json.load(response)
        return values


def says(page: Any, *texts: str) -> None:
    """From now on the page gets these answers in place of the model's, one after another, the last one for ever."""
    waiting = list(texts)

    def answer(route: Any) -> None:
        text = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": text[start:start + 7]},
                                                      "finish_reason": None}]} for start in range(0, len(text), 7)]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
        route.fulfill(content_type="text/event-stream", body="".join(f"data: {event}\n\n" for event in events))

    page.route("**/v1/chat/completions", answer)
