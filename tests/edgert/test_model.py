"""The Python API on a real model."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.memory.budget import process_bytes
from edgert.residency.region import Region

PROMPT = "The capital of France is"
QUESTION = [{"role": "user", "content": "Write one sentence about rivers."}]


def greedy(model: edgert.Model, prompt: str | list[int], count: int = 24) -> list[int]:
    generation = model.generate(prompt, max_tokens=count)
    generation.text()
    return generation.token_ids


def test_pieces_carry_text_ids_and_logprobs(model: edgert.Model) -> None:
    generation = model.generate(PROMPT, max_tokens=6, logprobs=3)
    pieces = list(generation)
    assert "".join(p.text for p in pieces) == model.tokenizer.decode(generation.token_ids)
    assert [p.token_id for p in pieces[:-1]] == generation.token_ids
    assert pieces[-1].finish_reason == "length"
    for piece in pieces[:-1]:
        assert len(piece.top_logprobs) == 3
        assert piece.logprob == piece.top_logprobs[0][1] <= 0


def test_logprobs_are_the_models(model: edgert.Model) -> None:
    (piece, _) = model.generate(PROMPT, max_tokens=1, logprobs=5)
    model.reset()
    logits = model.extend(model.tokenizer.encode(PROMPT))[0].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    np.testing.assert_allclose(piece.logprob, expected[piece.token_id], atol=1e-9)


def test_the_same_tokens_at_every_thread_count_and_chunk(smollm2: Path) -> None:
    prompt, answers = "A long time ago, " * 40, set()
    for threads, chunk in ((1, 512), (2, 512), (2, 1), (2, 7), (3, 64)):
        with edgert.load(smollm2, threads=threads, context=512, prefill_chunk=chunk) as loaded:
            answers.add(tuple(greedy(loaded, prompt)))
    assert len(answers) == 1


@pytest.mark.parametrize("memory", [0, -1, True, 1.5, float("nan"), b"600M", "600X"])
def test_budgets_that_are_none(smollm2: Path, memory: object) -> None:
    with pytest.raises(edgert.ModelError, match=r"memory is .*; give bytes|is not a size"):
        edgert.load(smollm2, memory=memory)  # type: ignore[arg-type]


def test_a_prompt_far_too_long_is_refused_before_it_is_cut_into_tokens(model: edgert.Model) -> None:
    with pytest.raises(edgert.ModelError, match="far more than fit in a context of 1024 tokens"):
        model.generate("a" * 1_000_000)
    for messages in ([{"role": "user", "content": "a" * 1_000_000}], [{"role": "user", "content": "a " * 50_000}] * 3):
        with pytest.raises(edgert.ModelError, match="far more than fit in a context of 1024 tokens"):
            model.chat(messages)


@pytest.mark.reference
def test_the_same_tokens_at_every_budget(qwen_gguf: Path, tmp_path: Path) -> None:
    """The 1.5B model with half of it on flash; prefill in one go, answers token by token."""
    edgert.convert(str(qwen_gguf), tmp_path / "m.edge")
    answers = set()
    for room, threads in ((None, 2), (350 << 20, 1), (550 << 20, 2)):
        memory = None if room is None else process_bytes() + Region.promised + room
        with edgert.load(tmp_path / "m.edge", memory=memory, threads=threads, context=512) as loaded:
            assert (loaded.plan.disk is not None) == (memory is not None)
            answers.add((*greedy(loaded, "def quicksort(values):"), *greedy(loaded, "A long time ago, " * 40)))
    assert len(answers) == 1


def test_token_by_token_is_bit_equal_to_at_once(model: edgert.Model) -> None:
    ids = model.tokenizer.encode("def fibonacci(n):\n    return n if n < 2 else")
    model.reset()
    at_once = model.extend(ids, every=True)
    model.reset()
    np.testing.assert_array_equal(at_once, np.concatenate([model.extend([token]) for token in ids]))


def test_what_the_session_holds_is_not_computed_again(model: edgert.Model) -> None:
    model.reset()
    first = greedy(model, PROMPT)
    longer = model.tokenizer.encode(PROMPT) + first[:10]
    generation = model.generate(longer, max_tokens=8)
    generation.text()
    assert generation.statistics.prompt_computed == 1
    assert generation.token_ids == first[10:18]


def test_chat_turns_share_their_beginning(model: edgert.Model) -> None:
    answer = model.chat(QUESTION, max_tokens=12)
    text = answer.text()
    turns = [*QUESTION, {"role": "assistant", "content": text}, {"role": "user", "content": "Another."}]
    second = model.chat(turns, max_tokens=4)
    second.text()
    assert second.statistics.prompt_computed < second.statistics.prompt_tokens - answer.statistics.prompt_tokens + 14


def test_seeded_sampling_repeats(model: edgert.Model) -> None:
    texts = {model.generate(PROMPT, max_tokens=16, temperature=1.0, seed=3).text() for _ in range(2)}
    assert len(texts) == 1


def test_stop_string(model: edgert.Model) -> None:
    whole = model.generate(PROMPT, max_tokens=20).text()
    stop = whole[5:9]
    generation = model.generate(PROMPT, max_tokens=20, stop=stop)
    pieces = list(generation)
    assert "".join(p.text for p in pieces) == whole[:whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_an_answer_may_be_left_and_another_begun(model: edgert.Model) -> None:
    first = model.generate(PROMPT, max_tokens=50)
    next(first)
    second = model.generate("Once upon", max_tokens=3)
    next(second)
    with pytest.raises(edgert.ModelError, match="newer"):
        next(first)
    second.close()
    assert list(second) == []


def test_a_full_context_ends_the_answer(smollm2: Path) -> None:
    with edgert.load(smollm2, threads=2, context=16) as loaded:
        generation = loaded.generate(PROMPT, ignore_eos=True)
        pieces = list(generation)
        assert pieces[-1].finish_reason == "length"
        assert len(loaded.tokenizer.encode(PROMPT)) + len(generation.token_ids) == 17
        with pytest.raises(edgert.ModelError, match="context"):
            loaded.generate("word " * 40)


def test_two_models_and_threads_of_a_program(smollm2: Path, model: edgert.Model) -> None:
    expected, got = greedy(model, PROMPT), {}
    with edgert.load(smollm2, threads=1, context=256) as other:
        def work(name: str, which: edgert.Model) -> None:
            got[name] = greedy(which, PROMPT)

        threads = [threading.Thread(target=work, args=item) for item in (("a", model), ("b", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {"a": expected, "b": expected}


def test_closing_from_another_thread_ends_the_answer(smollm2: Path) -> None:
    loaded = edgert.load(smollm2, threads=2, context=256)
    generation = loaded.generate(PROMPT, ignore_eos=True)
    next(generation)
    closer = threading.Thread(target=loaded.close)
    closer.start()
    with pytest.raises(edgert.ModelError, match="closed"):
        for _ in generation:
            pass
    closer.join()
    loaded.close()
    with pytest.raises(edgert.ModelError, match="closed"):
        loaded.generate(PROMPT)


def test_closing_an_answer_from_another_thread_ends_its_prefill(smollm2: Path) -> None:
    """At the next chunk of the prompt; what was computed until then need not be computed again."""
    with edgert.load(smollm2, threads=2, context=4096, prefill_chunk=16) as loaded:
        prompt = list(range(100, 4000))
        generation, errors = loaded.generate(prompt), []

        def work() -> None:
            try:
                next(generation)
            except edgert.ModelError as error:
                errors.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        while not loaded.computed:
            time.sleep(0.001)
        generation.close()
        thread.join(20)
        assert not thread.is_alive() and "was closed" in errors[0]
        computed = loaded.computed
        assert 0 < computed < len(prompt)
        again = loaded.generate(prompt[:computed + 1], max_tokens=1)
        again.text()
        assert again.statistics.prompt_computed == 1


@pytest.mark.parametrize(("settings", "message"), [
    ({"threads": 0}, "threads"), ({"prefill_chunk": 0}, "prefill_chunk"), ({"context": 0}, "context"),
    ({"context": 1 << 20}, "context"), ({"kv_type": "q5"}, "cache type")])
def test_settings_out_of_range_are_refused(smollm2: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(edgert.ModelError, match=message):
        edgert.load(smollm2, **settings)


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(model: edgert.Model, prompt: str) -> None:
    with pytest.raises(edgert.ModelError, match="empty"):
        model.generate(prompt)


def test_threads_end_with_the_model(smollm2: Path) -> None:
    before = set(threading.enumerate())  # of which some may be ending
    with edgert.load(smollm2, threads=3, context=64):
        ours = set(threading.enumerate()) - before
        assert len(ours) == 3, "one that has the model, two that help it"
    assert not ours & set(threading.enumerate())


def test_conversations_in_turn_compute_only_what_is_new(model: edgert.Model) -> None:
    """Also where another was asked in between."""
    system = {"role": "system", "content": "You know a lot about the sea, and answer in a few words. " * 8}
    talks = [[system, {"role": "user", "content": f"What is a {thing}?"}] for thing in ("reef", "tide", "gull")]
    known = 0
    for _ in range(3):
        for talk in talks:
            answer = model.chat(talk, max_tokens=6)
            text, prompt = answer.text(), len(model.render(talk))
            assert prompt - answer.statistics.prompt_computed >= (known if len(talk) == 2 else prompt - 30)
            known = 80  # of the system prompt
            talk += [{"role": "assistant", "content": text}, {"role": "user", "content": "Go on."}]


def test_an_answer_longer_than_the_context(smollm2: Path) -> None:
    """The same with guesses and without, in chunks of any size; a prompt may be longer, too."""
    answers = []
    for settings in ({"speculation": "off", "prefill_chunk": 50}, {"speculation": 4}):
        with edgert.load(smollm2, context=192, kv_policy="window", **settings) as loaded:
            assert loaded.endless
            answer = loaded.generate("One, two, three, " * 40, max_tokens=160, ignore_eos=True)
            answer.text()
            assert len(answer.token_ids) == 160
            answers.append(answer.token_ids)
    assert answers[0] == answers[1]


def test_a_token_that_is_biased_away_is_not_in_the_answer(model: edgert.Model) -> None:
    plain = greedy(model, PROMPT)
    answer = model.generate(PROMPT, max_tokens=24, logit_bias={plain[0]: -100})
    answer.text()
    assert plain[0] not in answer.token_ids


def test_a_bias_of_a_token_that_there_is_not(model: edgert.Model) -> None:
    with pytest.raises(edgert.ModelError, match="logit_bias names token 49152, which is not in the vocabulary"):
        model.generate(PROMPT, logit_bias={49152: 1.0})
