"""The key-value cache in a number of bytes, on a real model: where it goes, and that answers stay."""

import gc
import re
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.bundle import Bundle
from edgert.engine.pool import block_bytes
from edgert.engine.retention import POLICIES
from edgert.kernels.pages import PAGE
from edgert.memory.cache_room import CacheRoom, cache_room
from edgert.memory.plan import Planner

CONTEXT, PROMPT = 1536, np.random.default_rng(11).integers(1000, 5000, 1300).tolist()


def scarce(path: Path, **settings: object) -> str:
    """A budget that leaves most weights on flash, in this process as it is now; it grows with every model. What earlier
    tests have left goes first, not between this and loading."""
    gc.collect()
    with pytest.raises(edgert.ModelError) as refused:
        edgert.load(path, memory=1 << 20, **settings)  # type: ignore[arg-type]
    found = re.search(r"at least (\d+) MiB", str(refused.value))
    assert found is not None
    return f"{int(found[1]) + 15}M"


def answered(path: Path, count: int = 40, **settings: object) -> tuple[list[int], edgert.Model]:
    """The tokens after PROMPT, and after it was edited near its beginning."""
    with edgert.load(path, context=CONTEXT, threads=2, **settings) as model:  # type: ignore[arg-type]
        tokens: list[int] = []
        for prompt in (PROMPT, [*PROMPT[:300], 17, *PROMPT[300:]], PROMPT[:900]):
            answer = model.generate(prompt, max_tokens=count)
            answer.text()
            tokens += answer.token_ids
        return tokens, model


def test_a_cache_larger_than_its_memory_answers_the_same(smollm2: Path) -> None:
    want, plain = answered(smollm2)
    assert "cache read ahead" not in plain.plan.parts
    with Bundle(smollm2) as bundle:
        memory = 1024 // PAGE * block_bytes(bundle.header.config, "f16")
    for settings in ({"kv_memory": memory}, {}, {"speculation": 4}):
        if "kv_memory" not in settings:
            settings["memory"] = scarce(smollm2, context=CONTEXT, kv_policy="flash")
        got, model = answered(smollm2, kv_policy="flash", **settings)
        assert got == want
        assert model.plan.parts["cache read ahead"] > 0
        assert model.plan.parts["key-value cache"] < plain.plan.parts["key-value cache"]
        assert model._conversations.current.blocks.bytes_from_flash > 0
    everything, model = answered(smollm2, kv_policy="flash")
    assert everything == want and model.plan.parts["key-value cache"] == plain.plan.parts["key-value cache"]


def test_conversations_that_have_no_room_wait_on_flash(smollm2: Path) -> None:
    """Nothing is computed again but what is new, although the cache holds one of them."""
    rng = np.random.default_rng(12)
    system = rng.integers(1000, 5000, 200).tolist()
    with edgert.load(smollm2, context=640) as model:
        chats = [[*system, *rng.integers(1000, 5000, 250).tolist()] for _ in range(4)]
        answers: list[list[int]] = [[] for _ in chats]
        computed = []
        for _ in range(3):
            for number, chat in enumerate(chats):
                chat += rng.integers(1000, 5000, 15).tolist()
                answer = model.generate(chat, max_tokens=4, ignore_eos=True)
                answer.text()
                computed.append(answer.statistics.prompt_computed)
                chat += answer.token_ids
                answers[number] += answer.token_ids
    assert computed[0] == len(system) + 265 and max(computed[1:4]) <= 265 + PAGE
    assert max(computed[4:]) <= 20  # what is new, and the last token of the answer before
    with edgert.load(smollm2, context=640) as model:
        for chat, answer in zip(chats, answers, strict=True):
            again = model.generate(chat[:-4], max_tokens=4, ignore_eos=True)
            again.text()
            assert again.token_ids == answer[-4:]


def test_a_session_on_flash_is_saved_and_reopened(smollm2: Path, tmp_path: Path) -> None:
    settings = {"context": CONTEXT, "kv_policy": "flash"}
    with edgert.load(smollm2, memory=scarce(smollm2, **settings), **settings) as model:  # type: ignore[arg-type]
        model.extend(PROMPT)
        model.save_session(tmp_path / "a.session")
        want = model.extend([5, 6, 7])
    with edgert.load(smollm2, memory=scarce(smollm2, **settings), **settings) as model:  # type: ignore[arg-type]
        model.open_session(tmp_path / "a.session")
        np.testing.assert_array_equal(model.extend([5, 6, 7]), want)
    with edgert.load(smollm2, context=CONTEXT) as model:  # it also has room elsewhere
        model.open_session(tmp_path / "a.session")
        np.testing.assert_array_equal(model.extend([5, 6, 7]), want)


@pytest.mark.parametrize("policy", ["mixed", "heavy"])
@pytest.mark.parametrize("speculation", ["off", "auto", 3])
def test_what_is_forgotten_does_not_depend_on_the_budget(smollm2: Path, policy: str, speculation: str | int) -> None:
    """Nor on threads, nor on how many tokens of the prompt are computed at once."""
    answers, common = [], {"context": 1024, "kv_policy": policy, "speculation": speculation}
    for settings in ({}, {"memory": ""}, {"threads": 1, "prefill_chunk": 50}):
        if "memory" in settings:
            settings["memory"] = scarce(smollm2, **common)
        with edgert.load(smollm2, **common, **settings) as model:  # type: ignore[arg-type]
            assert model.endless
            answer = model.generate(PROMPT, max_tokens=40)
            answer.text()
            answers.append(answer.token_ids)
    assert answers[0] == answers[1] == answers[2]


def test_heavy_keeps_what_the_prompt_ends_with_asks_for(smollm2: Path) -> None:
    """Two prompts that differ in their ends alone keep different positions of what is before that."""
    kept = []
    with edgert.load(smollm2, context=512, kv_policy="heavy") as model:
        for end in ([7, 8, 9], [2000, 2001]):
            model.generate([*PROMPT[:1200], *end * 20], max_tokens=1).text()
            kept.append(model._conversations.current._places[..., :300].copy())
            assert model._conversations.current.length > 1200 and not model._conversations.current.coming
    assert not np.array_equal(*kept)


def test_bytes_decide_the_context(smollm2: Path) -> None:
    with Bundle(smollm2) as bundle:
        size = block_bytes(bundle.header.config, "f16")
    with edgert.load(smollm2, kv_memory=11 * size) as model:
        assert model.context == 10 * PAGE and model.plan.parts["key-value cache"] <= 11 * size + 8 * 30 * 10
    for policy in ("stop", "window"):
        with pytest.raises(edgert.ModelError, match=r"hold 704 tokens, and it needs room for 2112.*--kv-policy flash"):
            edgert.load(smollm2, kv_memory=11 * size, context=2048, kv_policy=policy)
    with pytest.raises(edgert.ModelError, match="hold 704 tokens, and it needs room for 1024"):
        edgert.load(smollm2, kv_memory=11 * size, context=2048, kv_policy="flash")
    with pytest.raises(edgert.ModelError, match="are too few for the policy mixed; it needs"):
        edgert.load(smollm2, kv_memory=2 * size, kv_policy="mixed")
    with pytest.raises(edgert.ModelError, match="the cache policy mixed goes with --kv-type q8, not f16"):
        edgert.load(smollm2, kv_policy="mixed", kv_type="f16")
    with pytest.raises(edgert.ModelError, match=r"kv_memory is -1; give bytes"):
        edgert.load(smollm2, kv_memory=-1)


def unplanned(_: CacheRoom) -> Planner:
    raise AssertionError("no plan is needed for this")


@pytest.mark.parametrize("share", [0.6, 0.3, 0.25, 0.125])
def test_mixed_takes_no_more_than_it_was_given(smollm2: Path, share: float) -> None:
    with Bundle(smollm2) as bundle:
        config = bundle.header.config
    memory = int(share * 6144 / PAGE) * block_bytes(config, "f16")
    room = cache_room(config, "q8", 6144, POLICIES["mixed"], 256, memory, None, unplanned)
    assert room.bytes <= memory + 8 * config.num_hidden_layers * 6144 // PAGE
    assert room.bytes > 0.97 * memory or room.low == 0
    assert room.context <= 6144 and (share < 0.3 or room.context == 6144)


def test_a_prompt_longer_than_the_model_takes(smollm2: Path) -> None:
    with edgert.load(smollm2, context=128) as model:
        for count, what in ((129, "shorten it or raise the context"), (9000, "this model takes 8192; or, with a kv_")):
            with pytest.raises(edgert.ModelError, match=f"{count} tokens, the context room for 128; .*{what}"):
                model.generate([1] * count)
