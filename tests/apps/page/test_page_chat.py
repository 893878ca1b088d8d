"""Chatting in the page with a real model: what is asked arrives, what is answered is shown and kept."""

import time
from typing import Any

import httpx
import pytest
from page_driver import answer_of, ask, ask_for_long, finished, greedily, kept, says, status_of

pytestmark = pytest.mark.xdist_group("page")
RIVERS = "Name three rivers."


def test_the_answer_is_the_servers(page: Any, server: str) -> None:
    greedily(page)
    ask(page, RIVERS)
    question = {"role": "user", "content": RIVERS}
    answer = answer_of(server, [question], temperature=0, max_tokens=40)
    ask(page, "And three lakes?")
    then = [question, {"role": "assistant", "content": answer}, {"role": "user", "content": "And three lakes?"}]
    (conversation,) = kept(page)
    assert [m["content"] for m in conversation["messages"]] == [
        RIVERS, answer, "And three lakes?", answer_of(server, then, temperature=0, max_tokens=40)]
    assert page.locator(".answer").first.inner_text().startswith(answer.split()[0])
    assert "tokens/s" in page.locator(".facts").first.inner_text()


def test_the_system_prompt_goes_with_the_question(page: Any, server: str) -> None:
    greedily(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("You are a pirate.")
    page.get_by_role("button", name="Done").click()
    ask(page, RIVERS)
    messages = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": RIVERS}]
    assert kept(page)[0]["messages"][1]["content"] == answer_of(server, messages, temperature=0, max_tokens=40)


def test_a_model_that_was_unloaded(page: Any, server: str) -> None:
    """By a client of Ollama's interface, say: the next question loads it again."""
    greedily(page)
    unloaded = {"model": "smollm2", "keep_alive": 0}
    assert httpx.post(f"{server}/api/generate", json=unloaded).json()["done_reason"] == "unload"
    page.locator(".state").get_by_text("unloaded").wait_for()
    ask(page, RIVERS)
    page.locator(".state.ready").wait_for(state="attached")
    assert kept(page)[0]["messages"][1]["content"] == answer_of(
        server, [{"role": "user", "content": RIVERS}], temperature=0, max_tokens=40)


def test_conversations_survive_a_reload(page: Any) -> None:
    says(page, "The first answer.", "The second answer.")
    ask(page, "The first question")
    page.keyboard.press("Control+k")
    assert page.locator(".message").count() == 0
    ask(page, "The second question")
    page.reload()
    page.locator(".answer").get_by_text("The second answer.").wait_for()
    page.get_by_role("button", name="The first question").first.click()
    page.locator(".answer").get_by_text("The first answer.").wait_for()
    page.get_by_role("button", name="Delete “The first question”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.locator(".answer").get_by_text("The second answer.").wait_for()
    assert [c["messages"][0]["content"] for c in kept(page)] == ["The second question"]


def test_left_in_the_middle_of_an_answer(page: Any) -> None:
    ask_for_long(page, 40)
    page.reload()
    page.locator(".facts").get_by_text("interrupted").wait_for()
    assert len(page.locator(".answer .markdown").inner_text()) >= 40


@pytest.mark.parametrize("by", ["Escape", "button"])
def test_stopping(page: Any, server: str, by: str) -> None:
    ask_for_long(page)
    if by == "button":
        page.get_by_role("button", name="Stop (Esc)").click()
    else:
        page.keyboard.press("Escape")
    finished(page)
    assert "stopped" in page.locator(".facts").inner_text()
    deadline, before = time.monotonic() + 30, -1
    while (now := status_of(server)["tokens"]) != before:  # the model stops too
        assert time.monotonic() < deadline
        before = now
        page.wait_for_timeout(500)
    ask(page, "Thank you. Say yes.")
    assert page.locator(".answer").count() == 2


def test_editing_drops_what_followed(page: Any) -> None:
    says(page, "One.", "Two.", "Three.")
    ask(page, "first")
    ask(page, "second")
    page.locator(".question").first.hover()
    page.get_by_role("button", name="Edit and ask again").first.click()
    field = page.get_by_label("Edit the question")
    assert field.input_value() == "first"
    field.fill("first, but better")
    page.keyboard.press("Enter")
    page.locator(".answer").get_by_text("Three.").wait_for()
    finished(page)
    assert [m["content"] for m in kept(page)[0]["messages"]] == ["first, but better", "Three."]


def test_an_edit_is_given_up_with_escape(page: Any) -> None:
    says(page, "One.")
    ask(page, "first")
    page.locator(".question").hover()
    page.get_by_role("button", name="Edit and ask again").click()
    page.get_by_label("Edit the question").fill("something else")
    page.keyboard.press("Escape")
    assert page.locator(".question-text").inner_text() == "first"


def test_again_with_another_seed(page: Any) -> None:
    says(page, "One.", "Two.")
    ask(page, "question")
    seeds = [kept(page)[0]["messages"][1]["asked"]["seed"]]
    page.get_by_role("button", name="Answer again, with another seed").click()
    page.locator(".answer").get_by_text("Two.").wait_for()
    messages = kept(page)[0]["messages"]
    assert [m["content"] for m in messages] == ["question", "Two."]
    assert messages[1]["asked"]["seed"] not in seeds


def test_keys(page: Any) -> None:
    says(page, "Answer.")
    field = page.get_by_role("textbox", name="Your question")
    field.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert field.input_value() == "one\ntwo"
    page.keyboard.press("Enter")
    page.locator(".answer").get_by_text("Answer.").wait_for()
    assert kept(page)[0]["messages"][0]["content"] == "one\ntwo"
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Your question"


def test_what_the_server_refuses_is_said(page: Any) -> None:
    greedily(page)
    page.get_by_role("textbox", name="Your question").fill("word " * 3000)
    page.keyboard.press("Enter")
    page.locator(".answer .error").wait_for()
    assert "1024" in page.locator(".answer .error").inner_text()
