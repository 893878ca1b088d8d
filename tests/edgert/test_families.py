"""Models of many families answer the same at every placement of their weights, with speculation and without; and what
the context that a model is loaded for may change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import small_engine
from family_gguf import CONTEXT, write_family

import edgert
from edgert.converters.convert import convert
from edgert.errors import SessionError

NAMES = ("qwen3", "mistral3", "phi3, longrope", "granite", "smollm3", "olmo2", "stablelm, heads", "phi2", "gptneox",
         "bitnet")
PROMPT = [(7 * n) % 250 for n in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle of one of KINDS, with the default preset."""
    folder, bundles = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in bundles:
            bundles[name] = folder / f"{len(bundles)}.edge"
            convert(str(write_family(folder / f"{len(bundles)}.gguf", name)), bundles[name])
        return bundles[name]

    return get


def answer(path: Path, speculation: str | int, *, keep: float, chunk: int) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        small_engine.use_plan(patch, path, keep=keep, chunk=chunk, rows=8, context=128)
        with edgert.load(path, context=128, threads=2, speculation=speculation) as model:
            generation = model.generate(PROMPT, max_tokens=24, ignore_eos=True)
            generation.text()
            return generation.token_ids


@pytest.mark.parametrize("name", NAMES)
def test_the_same_answer(name: str, made: Callable[[str], Path]) -> None:
    path = made(name)
    expected = answer(path, "off", keep=1.0, chunk=64)
    assert len(expected) == 24 and len(set(expected)) > 2
    assert answer(path, "off", keep=0.0, chunk=16) == expected
    assert answer(path, 4, keep=0.5, chunk=16) == expected


def test_longrope_changes_only_with_a_context_that_is_asked_for(made: Callable[[str], Path], tmp_path: Path) -> None:
    """And a conversation goes on only as it began."""
    path, session, answers = made("phi3, longrope"), tmp_path / "kept.session", {}
    for context in (None, 100, CONTEXT):
        with edgert.load(path, context=context, threads=1) as model:
            assert model.context == (context or 256) and model.longest_context == CONTEXT
            generation = model.generate(PROMPT, max_tokens=24, ignore_eos=True)
            generation.text()
            answers[context] = generation.token_ids
            if context == 100:
                model.save_session(session)
    assert answers[None] == answers[100] != answers[CONTEXT]
    says = r"was computed with a context of 100, .*; open it with --context 100$"
    with edgert.load(path, context=CONTEXT, threads=1) as model, pytest.raises(SessionError, match=says):
        model.open_session(session)
    with edgert.load(path, context=200, threads=1) as model:
        model.open_session(session)


def test_a_cache_of_many_bytes_asks_for_no_longer_context(made: Callable[[str], Path]) -> None:
    with edgert.load(made("phi3, longrope"), kv_memory="64M", threads=1) as model:
        assert model.context == 256
