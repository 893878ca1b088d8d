"""Answers with `max_loss`: what they lose is what is counted, and no more than was allowed."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_engine
from tiny_model import give_tokenizer, write_model

import edgert
from edgert.converters.convert import convert
from edgert.generation.generation import Generation

PROMPT = "Of rivers and of seas"
Load = Callable[[str | int], edgert.Model]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("lenient") / "model", size=0.2, num_hidden_layers=2,
                         intermediate_size=700, vocab_size=300, hidden_size=64, num_attention_heads=4,
                         max_position_embeddings=256)
    convert(str(give_tokenizer(folder)), folder.with_name("m.edge"), "q4")
    return folder.with_name("m.edge")


@pytest.fixture
def load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(mode): a model whose drafts have nothing but bases."""
    def made(mode: str | int) -> edgert.Model:
        small_engine.use_plan(monkeypatch, bundle, chunk=17, rows=17, context=256, keep=1.0, details=0.0,
                              attention=1.0, head=1.0)
        return edgert.load(bundle, threads=2, context=256, speculation=mode, structured=True)

    return made


def answered(model: edgert.Model, **settings: Any) -> tuple[Generation, list[float]]:
    """An answer of 120 tokens, and the probabilities that it says its tokens have."""
    model.reset()
    answer = model.generate(PROMPT, **{"max_tokens": 120, "ignore_eos": True, "logprobs": 1, **settings})
    return answer, [piece.logprob for piece in answer if piece.logprob is not None]


@pytest.mark.parametrize("max_loss", [0.01, 0.03, 0.2])
def test_what_is_lost_is_what_was_allowed(load: Load, max_loss: float) -> None:
    """As a model without speculation sees it, one token after another."""
    with load(5) as model:
        answer, said = answered(model, max_loss=max_loss)
    prompt = len(answer.prompt_ids)
    with load("off") as model:
        scores = model.score([*answer.prompt_ids, *answer.token_ids], top=1, start=prompt)
    likely, best = scores.logprobs[prompt:], [top[0][1] for top in scores.top[prompt:]]
    losses = [most - logprob for most, logprob in zip(best, likely, strict=True)]
    assert said == pytest.approx(likely, abs=1e-5), "probabilities are the exact model's"
    s = answer.statistics
    assert s.lenient == sum(loss > 1e-6 for loss in losses) and s.loss == pytest.approx(sum(losses), abs=1e-3)
    assert s.loss_per_token == pytest.approx(math.expm1(sum(losses) / 120), abs=1e-4) and s.loss_per_token <= max_loss
    assert max(losses) <= 1


def test_more_tokens_come_of_a_pass(load: Load) -> None:
    with load(5) as model:
        exact, _ = answered(model)
        lenient, _ = answered(model, max_loss=0.3)
        assert exact.statistics.lenient == 0 == exact.statistics.loss
        assert lenient.statistics.lenient > 3 and lenient.statistics.tokens_per_pass > exact.statistics.tokens_per_pass
        again, _ = answered(model)
    with load("off") as model:
        alone, _ = answered(model, max_loss=0.3)  # nothing is guessed: nothing is lost
    assert exact.token_ids == again.token_ids == alone.token_ids != lenient.token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_what_it_must_follow_it_follows(load: Load, temperature: float) -> None:
    pattern = r'\{"a": [0-9]{2,5}, "words": ("none"|"[a-f]{3,9}")\}'
    with load(5) as model:
        for seed in range(6):
            answer, _ = answered(model, regex=pattern, ignore_eos=False, temperature=temperature, seed=seed,
                                 logprobs=None, max_loss=1.0)
            assert re.fullmatch(pattern, model.tokenizer.decode(answer.token_ids, skip_special=True))


def test_sampled_answers_take_nearby_samples(load: Load) -> None:
    """Tokens that the filters leave out are not among them."""
    with load(5) as model:
        for seed in range(4):
            answer, _ = answered(model, temperature=1.0, seed=seed, top_k=2, logprobs=2, max_loss=0.5)
            assert answer.statistics.loss_per_token <= 0.5
            model.reset()
            scores = model.score([*answer.prompt_ids, *answer.token_ids], top=2, start=len(answer.prompt_ids))
            assert all(token in {of for of, _ in top}
                       for token, top in zip(answer.token_ids, scores.top[len(answer.prompt_ids):], strict=True))


def test_out_of_range(load: Load) -> None:
    with load("off") as model, pytest.raises(edgert.ModelError, match="max_loss is 3; it goes from 0 to 1, for 100 %"):
        model.generate("a", max_loss=3)
