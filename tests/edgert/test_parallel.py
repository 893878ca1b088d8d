"""Several answers at once: each is as if it were alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_engine
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.converters.convert import convert
from edgert.engine.engine import Engine

CONTEXT = 256
PROMPTS = ["Of rivers and of hills, and of rivers and of hills, and", "A", "Once upon a time there was a model. " * 3,
           "Of rivers and of hills, and then of something else", "x" * 130, "Zwölf Boxkämpfer jagen Viktor quer"]
SETTINGS: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 3}, {"logprobs": 2}, {"regex": "(ab|cd)+"},
                                  {"temperature": 1.5, "seed": 4, "frequency_penalty": 0.5}, {"stop": "q"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("parallel") / "model", size=0.2, num_hidden_layers=3,
                         intermediate_size=700, vocab_size=300, max_position_embeddings=2048)
    convert(str(give_tokenizer(folder)), folder.with_name("m.edge"), "q4")
    return folder.with_name("m.edge")


@pytest.fixture(params=[0.1, 1.0], ids=["streaming", "in memory"])
def keep(request: pytest.FixtureRequest, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """How much of the weights stays in memory."""
    small_engine.use_plan(monkeypatch, bundle, keep=request.param, chunk=40, rows=17, context=512)
    kept: float = request.param
    return kept


def pieces(model: edgert.Model, number: int) -> list[edgert.Piece]:
    return list(model.generate(PROMPTS[number], max_tokens=40, wait=True, **SETTINGS[number]))


@pytest.mark.parametrize("speculation", ["off", "auto", 3])
def test_each_is_as_if_it_were_alone(bundle: Path, keep: float, speculation: str | int) -> None:
    """Greedy, sampled, with grammars, with log-probabilities; over and over, as turns come."""
    with edgert.load(bundle, threads=2, context=CONTEXT, speculation="off", structured=True) as alone:
        expected = [pieces(alone, number) for number in range(len(PROMPTS))]
    with edgert.load(bundle, threads=2, context=CONTEXT, speculation=speculation, parallel=3,
                     structured=True) as model, ThreadPoolExecutor(len(PROMPTS)) as pool:
        for _ in range(3):
            assert list(pool.map(lambda number: pieces(model, number), range(len(PROMPTS)))) == expected


@pytest.mark.parametrize("policy", ["window", "heavy"])
def test_contexts_that_overflow(bundle: Path, keep: float, policy: str) -> None:
    prompts = [PROMPTS[2] * 4, "Of rivers and of hills, " * 18, "y" * 490]
    settings: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "wait": True}
    with edgert.load(bundle, threads=2, context=512, speculation="off", kv_policy=policy) as alone:
        expected = [alone.generate(prompt, **settings).text() for prompt in prompts]
    with edgert.load(bundle, threads=2, context=512, parallel=2, kv_policy=policy) as model, \
            ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert list(pool.map(lambda prompt: model.generate(prompt, **settings).text(), prompts)) == expected


def test_passes_are_shared(bundle: Path, keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers take little more passes than one."""
    passes: list[int] = []
    verify = Engine.verify

    def counted(self: Engine, batch: Any, **options: Any) -> list[np.ndarray]:
        passes.append(len(batch))
        return verify(self, batch, **options)

    monkeypatch.setattr(Engine, "verify", counted)
    with edgert.load(bundle, threads=1, context=CONTEXT, speculation="off", parallel=4) as model, \
            ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: model.generate(PROMPTS[n], max_tokens=120, ignore_eos=True, wait=True).text(),
                      [0, 1, 2, 5]))
    # How many are shared depends on the machine's load.
    assert max(passes) == 4 and len(passes) < sum(passes) <= 4 * 119


def test_a_long_prompt_does_not_stop_the_others(bundle: Path, keep: float) -> None:
    """Each pass takes a part of it, and every answer's next token."""
    with edgert.load(bundle, threads=1, context=512, parallel=2, speculation="off") as model:
        going = model.generate("A", max_tokens=500, ignore_eos=True)
        next(going)
        long = model.generate("b" * 480, max_tokens=2, ignore_eos=True, wait=True)
        came: list[edgert.Piece] = []
        thread = threading.Thread(target=lambda: came.append(next(long)))
        thread.start()
        while not long.computed and thread.is_alive():
            next(going)
        before = len(going.token_ids)
        while thread.is_alive():
            next(going)
        assert came and len(going.token_ids) > before
        going.close()


def test_a_common_beginning_is_computed_once(bundle: Path, keep: float) -> None:
    """Also that of an answer that is still under way."""
    common = "You are a helpful assistant, and you answer all questions in verse, always, and with great care. "
    with edgert.load(bundle, threads=1, context=CONTEXT, parallel=3) as model:
        going = [model.generate(common + "One", ignore_eos=True)]
        next(going[0])
        for ending in ("Two", "Three"):
            going.append(model.generate(common + ending, ignore_eos=True, wait=True))
            next(going[-1])
            assert going[-1].statistics.prompt_computed <= len(going[-1].prompt_ids) - 64
        for each in going:
            next(each)


def test_the_oldest_ends_where_there_is_no_turn_left(bundle: Path) -> None:
    with edgert.load(bundle, threads=1, context=64, parallel=2) as model:
        first, second, third = (model.generate(text, ignore_eos=True) for text in "abc")
        next(first)
        next(second)
        next(third)
        with pytest.raises(edgert.ModelError, match="ended by a newer one"):
            next(first)
        next(second)
        assert next(third).token_id is not None


def test_one_that_is_not_read_does_not_hold_up_the_others(bundle: Path) -> None:
    with edgert.load(bundle, threads=1, context=64, parallel=2) as model:
        idle = model.generate("a", ignore_eos=True)
        next(idle)
        assert len(list(model.generate("b", ignore_eos=True, max_tokens=30, wait=True))) == 31
        assert next(idle).token_id is not None


def test_what_goes_wrong_with_one_is_not_the_others_fault(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt whose values are not finite, say."""
    forward_all, verify = Engine.forward_all, Engine.verify
    bad = 77

    def check(batch: Any) -> None:
        if any(bad in list(new.tokens) + new.session.tokens for new in batch):
            raise edgert.ModelError("not finite")

    def forward_faulty(self: Engine, batch: Any, **options: Any) -> Any:
        check(batch)
        return forward_all(self, batch, **options)

    def verify_faulty(self: Engine, batch: Any, **options: Any) -> Any:
        check(batch)
        return verify(self, batch, **options)

    with edgert.load(bundle, threads=1, context=CONTEXT, parallel=3, speculation="off") as model:
        want = [model.generate([5, 6, n], max_tokens=20, ignore_eos=True).text() for n in (8, 9)]
        monkeypatch.setattr(Engine, "forward_all", forward_faulty)
        monkeypatch.setattr(Engine, "verify", verify_faulty)

        def ask(number: int) -> str:
            try:
                return model.generate([5, 6, number], max_tokens=20, ignore_eos=True, wait=True,
                                      logit_bias={bad: -100}).text()
            except edgert.ModelError as error:
                return str(error)

        with ThreadPoolExecutor(3) as pool:
            for _ in range(5):
                assert list(pool.map(ask, (8, bad, 9))) == [want[0], "not finite", want[1]]


def test_what_does_not_go_with_it(bundle: Path) -> None:
    for policy in ("flash", "mixed"):
        with pytest.raises(edgert.ModelError, match="2 answers at once do not go with the cache policies"):
            edgert.load(bundle, context=1024, parallel=2, kv_policy=policy)
    for number in (0, 17):
        with pytest.raises(edgert.ModelError, match=rf"parallel is {number}; it goes from 1 to 16"):
            edgert.load(bundle, parallel=number)
    with edgert.load(bundle, context=64, parallel=2) as model:
        for call in (lambda: model.extend([1]), model.reset, lambda: model.save_session("x")):
            with pytest.raises(edgert.ModelError, match="gives 2 answers at once; load it with parallel=1"):
                call()


def test_the_plan_counts_all_contexts(bundle: Path) -> None:
    parts = []
    for number in (1, 4):
        with edgert.load(bundle, context=1024, parallel=number) as model:
            parts.append(model.plan.parts["key-value cache"])
    assert 3.9 < parts[1] / parts[0] < 4.1
