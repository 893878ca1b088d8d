"""Model.score: how likely a model finds each token of a text."""

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import edgert

TEXT = "The river is wide where it meets the sea. In spring it carries snow from the hills, and boats go slowly. " * 3


@pytest.fixture(scope="module")
def ids(model: edgert.Model) -> list[int]:
    return model.tokenizer.encode(TEXT)


def test_equal_to_what_an_answer_says_of_its_tokens(model: edgert.Model) -> None:
    prompt = model.tokenizer.encode("The capital of France is")
    answer = model.generate(prompt, max_tokens=20, logprobs=3)
    pieces = list(answer)[:-1]
    for _ in range(2):  # from nothing, and with all of it in the cache
        scores = model.score([*prompt, *answer.token_ids], top=3)
        assert scores.logprobs[len(prompt):].tolist() == [piece.logprob for piece in pieces]
        assert scores.top[len(prompt):] == [piece.top_logprobs for piece in pieces]
    (piece, _) = model.generate([*prompt, *answer.token_ids], max_tokens=1, logprobs=3)
    assert scores.following == piece.top_logprobs


def test_the_shape_of_scores(model: edgert.Model, ids: list[int]) -> None:
    scores = model.score(ids)
    assert scores.logprobs.shape == (len(ids),)
    assert np.isnan(scores.logprobs).tolist() == [True] + [False] * (len(ids) - 1)
    assert scores.top == [[]] * len(ids)
    assert len(scores.following) == 1
    assert len(model.score(ids[:1], top=4).following) == 4


def test_as_few_rows_as_the_budget_has_room_for(model: edgert.Model, ids: list[int],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rows = model.score(ids, top=2), []
    forward = model._engine.forward

    def counted(*arguments: object, **settings: object) -> np.ndarray:
        logits = forward(*arguments, **settings)  # type: ignore[arg-type]
        rows.append(len(logits))
        return logits

    monkeypatch.setattr(model._engine, "forward", counted)
    for room in (3, 9):
        monkeypatch.setattr(model, "plan", model.plan.__class__(**{**vars(model.plan), "logit_rows": room}))
        rows.clear()
        parts = model.score(ids, top=2)
        assert max(rows) == room - 2
        np.testing.assert_array_equal(parts.logprobs, whole.logprobs)
        assert (parts.top, parts.following) == (whole.top, whole.following)


def test_what_is_not_scored_comes_from_the_cache(model: edgert.Model, ids: list[int],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    whole, start = model.score(ids), len(ids) - 5
    computed = []
    forward = model._engine.forward

    def counted(session: object, tokens: list[int], *arguments: object, **settings: object) -> np.ndarray:
        computed.append(len(tokens))
        return forward(session, tokens, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(model._engine, "forward", counted)
    end = model.score(ids, start=start)
    assert sum(computed) == 6
    assert np.isnan(end.logprobs[:start]).all()
    np.testing.assert_array_equal(end.logprobs[start:], whole.logprobs[start:])
    other = model.score([*ids[1:40], *ids[:20]], start=45)
    np.testing.assert_array_equal(other.logprobs[45:], model.score([*ids[1:40], *ids[:20]]).logprobs[45:])


def test_equal_to_eval(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    done = subprocess.run([sys.executable, "-m", "edgert", "eval", smollm2, "--text", tmp_path / "text.txt",
                           "--window", "64", "--json"], capture_output=True, check=True)
    told = json.loads(done.stdout)
    with edgert.load(smollm2, context=64) as model:
        ids = model.tokenizer.encode(TEXT, add_bos=False)
        loss = 0.0
        for start in range(0, len(ids) - 63, 64):
            for logprob in model.score(ids[start:start + 64]).logprobs[33:].tolist():
                loss -= logprob
    assert math.exp(loss / told["tokens"]) == told["perplexity"]


def test_an_answer_goes_on_from_what_was_scored(model: edgert.Model, ids: list[int]) -> None:
    alone = model.generate(ids, max_tokens=5)
    alone.text()
    model.score(ids)
    after = model.generate(ids, max_tokens=5)
    after.text()
    assert after.token_ids == alone.token_ids
    assert after.statistics.prompt_computed == 1


def test_what_progress_raises_ends_it(model: edgert.Model, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.score(ids)
    monkeypatch.setattr(model, "plan", model.plan.__class__(**{**vars(model.plan), "logit_rows": 12}))
    seen = []

    def progress(done: int, count: int) -> None:
        seen.append((done, count))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.score(ids, progress=progress)
    assert seen == [(10, len(ids)), (20, len(ids))]
    np.testing.assert_array_equal(model.score(ids).logprobs, expected.logprobs)


def test_a_newer_answer_ends_it(model: edgert.Model, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "plan", model.plan.__class__(**{**vars(model.plan), "logit_rows": 12}))

    def progress(done: int, count: int) -> None:
        if done == 20:
            model.generate("Of rivers", max_tokens=1).text()

    with pytest.raises(edgert.ModelError, match="ended by a newer one"):
        model.score(ids, progress=progress)


def test_waiting_for_the_current_answer(model: edgert.Model, ids: list[int]) -> None:
    answer = model.generate("Of rivers", max_tokens=30)
    next(answer)
    found = []
    thread = threading.Thread(target=lambda: found.append(model.score(ids, wait=True)))
    thread.start()
    answer.text()
    thread.join()
    assert len(answer.token_ids) == 30
    np.testing.assert_array_equal(found[0].logprobs, model.score(ids).logprobs)


@pytest.mark.parametrize(("tokens", "settings", "message"), [
    ([], {}, "there are no tokens"),
    ([1] * 1025, {}, "the text has 1025 tokens, the context room for 1024"),
    ([1, 2], {"top": -1}, "top is -1"),
    ([1, 2], {"top": 1001}, "top is 1001"),
    ([1, 2], {"start": 0}, "start is 0"),
    ([1, 2], {"start": 3}, "start is 3"),
    ([1, 10 ** 6], {}, "token 1000000 is not in the vocabulary"),
])
def test_what_cannot_be_scored(model: edgert.Model, tokens: list[int], settings: dict[str, int], message: str) -> None:
    with pytest.raises(edgert.ModelError, match=message):
        model.score(tokens, **settings)  # type: ignore[arg-type]
