"""What a model thinks before it answers is folded above the answer, and goes with the next question."""

from pathlib import Path
from typing import Any

import pytest
from page_driver import ask, greedily, kept, serving
from thinking_model import ANSWER, THOUGHT, write_thinking_gguf

import edgert

pytestmark = pytest.mark.xdist_group("page")


def test_thoughts_are_folded(browse: Any, tmp_path: Path) -> None:
    edgert.convert(str(write_thinking_gguf(tmp_path / "model.gguf")), tmp_path / "thinker.edge")
    with serving(tmp_path / "thinker.edge", "-c", "512") as address:
        page = browse(address)
        greedily(page)
        ask(page, "2+2?")
        thought, answer = page.locator(".answer .thought"), page.locator(".answer .markdown")
        assert (answer.inner_text().strip(), thought.locator("summary").inner_text()) == (ANSWER, "Thought")
        assert not thought.get_by_text(THOUGHT).is_visible()
        thought.locator("summary").click()
        assert thought.get_by_text(THOUGHT).is_visible()
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "3+3?")
        assert sent.value.post_data_json["messages"][1] == {
            "role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
        assert [message.get("thinking") for message in kept(page)[0]["messages"]] == [None, THOUGHT, None, THOUGHT]
        page.close()
