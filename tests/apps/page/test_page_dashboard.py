"""The dashboard, and the budget: the answer stays, the speed moves."""

import re
from typing import Any

import pytest
from page_driver import ask, ask_for_long, finished, greedily, kept, says, status_of

pytestmark = pytest.mark.xdist_group("page")
MIB = 1 << 20


def loaded(page: Any) -> Any:
    """The slider, once no model is being loaded."""
    slider = page.get_by_label("Memory budget in MiB").and_(page.locator(":enabled"))
    slider.wait_for()
    return slider


def move(page: Any, budget: int) -> None:
    """Move the slider as a drag does: what it passes, then where it is let go."""
    loaded(page).evaluate("""(slider, value) => {
        slider.value = value;
        slider.dispatchEvent(new Event('input', { bubbles: true }));
        slider.dispatchEvent(new Event('change', { bubbles: true }));
    }""", str(budget))


def smallest(page: Any) -> int:
    return int(page.get_by_label("Memory budget in MiB").get_attribute("min"))


def test_what_it_shows_is_what_the_server_says(page: Any, server: str) -> None:
    said = status_of(server)
    assert page.locator(".budget .large b").inner_text() == str(round(said["budget"] / MIB))
    rows = dict(zip(page.locator(".parts th").all_inner_texts(), page.locator(".parts td").all_inner_texts(),
                    strict=True))
    for name, size in said["parts"].items():
        if size:
            assert float(rows[name.removeprefix("pinned ")]) == pytest.approx(size / MIB, abs=0.6)
    assert page.locator(".layers > span").count() == len(said["layers"])
    assert page.locator(".plot canvas").count() == 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_answer_stays(page: Any, server: str, temperature: float) -> None:
    """Also one that is sampled: the question is asked again with the seed that it had."""
    if not temperature:
        greedily(page, 60)
    ask(page, "Name three rivers.")
    answer = kept(page)[0]["messages"][-1]["content"]
    budget = smallest(page)
    move(page, budget)
    page.locator(".answer").get_by_text(f"same answer at {budget} MiB").wait_for()
    assert round(status_of(server)["budget"] / MIB) == budget
    assert status_of(server)["streaming"]["bytes"] > 0
    message = kept(page)[0]["messages"][-1]
    assert message["content"] == answer
    assert [run["same"] for run in message["runs"]] == [True, True]
    assert page.locator(".runs tbody tr").count() == 2
    assert page.locator(".layers i").first.evaluate("node => parseFloat(node.style.height)") < 100
    whole = int(page.get_by_label("Memory budget in MiB").get_attribute("max"))
    move(page, whole)
    page.locator(".answer").get_by_text(f"same answer at {whole} MiB").wait_for()
    assert len(kept(page)[0]["messages"][-1]["runs"]) == 3


def test_another_answer_is_called_another(page: Any, server: str) -> None:
    says(page, "Rome is the capital.", "Rome was the capital.")
    ask(page, "question")
    move(page, smallest(page) + 1)
    page.locator(".answer").get_by_text(re.compile("differs at .* from character 6 on")).wait_for()
    assert page.locator(".runs .differs").count() == 1
    assert page.locator(".answer .markdown").inner_text() == "Rome is the capital."


def test_a_shorter_answer_is_another(page: Any, server: str) -> None:
    says(page, "Rome is the capital.", "Rome is")
    ask(page, "question")
    move(page, smallest(page) + 2)
    page.locator(".answer").get_by_text("differs at").wait_for()


def test_one_that_was_stopped_is_compared_as_far_as_it_went(page: Any, server: str) -> None:
    ask_for_long(page)
    page.keyboard.press("Escape")
    finished(page)
    move(page, smallest(page) + 3)
    page.locator(".answer").get_by_text("same answer at").wait_for()


def test_it_is_not_asked_again_where_that_is_not_wanted(page: Any, server: str) -> None:
    says(page, "One.")
    ask(page, "question")
    page.get_by_label("ask the last question again").uncheck()
    budget = smallest(page) + 5
    move(page, budget)
    page.locator(".budget .large").get_by_text(f"{budget} MiB").and_(page.locator("p")).wait_for()
    loaded(page)
    finished(page)
    assert round(status_of(server)["budget"] / MIB) == budget
    assert "runs" not in kept(page)[0]["messages"][-1]


def test_a_budget_that_is_refused(page: Any, server: str) -> None:
    before = status_of(server)["budget"]
    page.route("**/edgert/budget", lambda route: route.continue_(post_data='{"memory": "20M"}'))
    move(page, smallest(page) + 7)
    page.locator(".budget .error").wait_for()
    assert "20 MiB is too small" in page.locator(".budget .error").inner_text()
    finished(page)
    assert status_of(server)["budget"] == before
