"""Conversations, answers at once and sessions of a mixture of experts whose experts are read when they are needed: the
same as where all are in memory; and where it is told what was read."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import small_engine
from tiny_model import give_tokenizer, write_mixture

import edgert
from edgert.apps.chat_statistics import statistics_lines
from edgert.apps.server.metrics import Metrics
from edgert.apps.server.status import status
from edgert.commands.statistics import flash_use
from edgert.converters.convert import convert
from edgert.watching import Watch

CONTEXT = 256
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
PROMPTS = ["Of rivers and of hills, and of rivers and of hills, and", "A", "Zwölf Boxkämpfer jagen Viktor quer"]
SETTINGS: list[dict[str, Any]] = [{"ignore_eos": True}, {"ignore_eos": True, "temperature": 0.9, "seed": 3},
                                  {"regex": "(ab|cd)+"}]
Load = Callable[..., edgert.Model]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_mixture(tmp_path_factory.mktemp("answers") / "model")
    give_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    convert(str(folder), folder.with_name("m.edge"), "q4")
    return folder.with_name("m.edge")


@pytest.fixture
def load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(keep, …): the model, with room for so many of its experts, from 0 to 1."""
    def made(keep: float, **settings: Any) -> edgert.Model:
        small_engine.use_plan(monkeypatch, bundle, keep=keep, attention=1.0, head=1.0, chunk=40, rows=17,
                              context=CONTEXT)
        return edgert.load(bundle, **{"threads": 2, "context": CONTEXT, "structured": True, **settings})

    return made


def chatted(model: edgert.Model) -> list[str]:
    """Answers of three turns."""
    messages: list[dict[str, str]] = []
    for question in ("Name a river.", "And one more?", "Say all of that again."):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": model.chat(messages, max_tokens=12).text()})
    return [message["content"] for message in messages[1::2]]


def text_of(model: edgert.Model, number: int) -> str:
    return model.generate(PROMPTS[number], max_tokens=24, wait=True, **SETTINGS[number]).text()


@pytest.mark.parametrize("keep", [0.0, 0.4])
def test_a_conversation(load: Load, keep: float) -> None:
    with load(1.0, speculation="off") as model:
        assert model.expert_counts is None
        expected = chatted(model)
    with load(keep) as model:
        assert chatted(model) == expected
        assert model.expert_counts is not None and model.expert_counts.missed > 0


@pytest.mark.parametrize("speculation", ["off", "auto"])
def test_answers_at_once(load: Load, speculation: str) -> None:
    with load(1.0, speculation="off") as alone:
        expected = [text_of(alone, number) for number in range(len(PROMPTS))]
    with load(0.3, speculation=speculation, parallel=3) as model, ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert list(pool.map(lambda number: text_of(model, number), range(len(PROMPTS)))) == expected


def test_a_session_that_goes_on(load: Load, tmp_path: Path) -> None:
    """With other experts in memory than it was begun with."""
    first, second = ({"max_tokens": count, "ignore_eos": True} for count in (10, 20))
    with load(1.0) as model:
        begun = model.generate(PROMPTS[0], **first)
        text = PROMPTS[0] + begun.text()
        expected = model.generate(text, **second).text()
    with load(0.4) as model:
        assert PROMPTS[0] + model.generate(PROMPTS[0], **first).text() == text
        model.save_session(tmp_path / "session", {"text": text})
    with load(0.1) as model:
        assert model.open_session(tmp_path / "session") == {"text": text}
        answer = model.generate(text, **second)
        assert answer.text() == expected
        assert answer.statistics.prompt_computed < answer.statistics.prompt_tokens / 2


def test_what_was_read_is_told(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers in /stats of the chat, in --json, and in the server's /edgert/status and /metrics, also after
    the model was let go of."""
    monkeypatch.setattr(edgert.Model, "budgets", lambda model: (1, 2))
    with load(0.4, speculation="off") as model:
        watch = Watch(model)
        answer = model.generate(PROMPTS[0], max_tokens=24, ignore_eos=True)
        answer.text()
        counts = model.expert_counts
        assert counts is not None
        told = asdict(counts)
        assert told["needed"] >= told["missed"] > 0 and told["guessed"] >= told["right"] and told["bytes"] > 0
        assert flash_use(model, answer.statistics)["experts"] == told
        (line,) = [line for line in statistics_lines(model, answer) if line.startswith("experts: ")]
        assert int(re.findall(r"(\d+) % were in memory", line)[0]) == round(100 * (1 - counts.missed / counts.needed))
        assert f"{counts.bytes / 1e9:.1f} GB of them were read" in line
        assert ("% of guesses were right" in line) == (counts.guessed > 0)
        service = cast(Any, SimpleNamespace(watch=watch, state="ready", error=None, waiting=0, answering=False,
                                            counts=SimpleNamespace(tokens=24, drafted=0, accepted=0, prompt_tokens=0,
                                                                   cached_tokens=0, answers=1)))
        metrics = Metrics(service)
        for gone in (False, True):
            if gone:
                watch.let_go()
            assert status(service, "m", 0)["experts"] == told
            lines = dict(line.split() for line in metrics.text().decode().splitlines()
                         if line.startswith("edgert_model_experts_"))
            assert {name: float(value) for name, value in lines.items()} == {
                f"edgert_model_experts_{name}": told[name] for name in ("needed", "missed", "guessed", "right",
                                                                        "bytes")}


def test_nothing_is_told_where_all_experts_are_in_memory(load: Load) -> None:
    with load(1.0) as model:
        answer = model.generate("A", max_tokens=4, ignore_eos=True)
        answer.text()
        assert model.expert_counts is None
        assert not any(line.startswith("experts") for line in statistics_lines(model, answer))
