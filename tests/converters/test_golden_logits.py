"""Tiny random models, converted and run: the logits are transformers', and do not depend on how they are asked for.

tests/golden/make_models.py made the models and, with transformers in float32, their logits.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.engine.engine import Engine
from edgert.engine.session import Session

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.name for path in (GOLDEN / "models").iterdir())
CONTEXT = 64
Open = Callable[[str, str], Bundle]
"""A bundle by model and preset."""


@functools.cache
def golden(name: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Tokens, the logits after some of them, and after which: all, or every so manieth."""
    with np.load(GOLDEN / f"logits-{name}.npz", allow_pickle=False) as file:
        tokens = file["tokens"]
        return tokens.tolist(), file["logits"], file["kept"] if "kept" in file else np.arange(len(tokens))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    bundles: dict[tuple[str, str], Bundle] = {}

    def get(name: str, preset: str) -> Bundle:
        if (name, preset) not in bundles:
            out = tmp_path_factory.mktemp("bundles") / f"{name}-{preset}.edge"
            convert(str(GOLDEN / "models" / name), out, preset)
            bundles[name, preset] = Bundle(out)
            bundles[name, preset].load_for(CONTEXT)
        return bundles[name, preset]

    yield get
    for bundle in bundles.values():
        bundle.close()


def engine(bundle: Bundle, *, threads: int = 2, chunk: int = 64, cache_type: str = "f32") -> Engine:
    return make_engine(bundle, threads=threads, chunk=chunk, cache_type=cache_type)


def all_logits(bundle: Bundle, tokens: list[int], pieces: list[int] | None = None, *, threads: int = 2, chunk: int = 64,
               cache_type: str = "f32") -> np.ndarray:
    """The logits after every token; pieces: how many tokens to give at a time, by default all."""
    made, session = engine(bundle, threads=threads, chunk=chunk, cache_type=cache_type), Session(
        bundle.header.config, CONTEXT, cache_type)
    try:
        parts, start = [], 0
        for count in pieces or [len(tokens)]:
            parts.append(made.forward(session, tokens[start:start + count], range(count)))
            start += count
        assert start == session.length == len(tokens)
        return np.concatenate(parts)
    finally:
        made.close()
        session.close()


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_transformers(opened: Open, name: str) -> None:
    """In float32 throughout: within 1e-5 standard deviations at the worst of 60 x 263 logits (6e-6 was achieved)."""
    tokens, expected, kept = golden(name)
    logits = all_logits(opened(name, "f32"), tokens)[kept]
    assert np.abs(logits - expected).max() < 1e-5 * expected.std()


BOUNDS = {"f16": 3e-3, "q8": 0.05, "q6": 0.1, "q4": 0.3}
"""Root mean square error in standard deviations. Achieved at the worst: 0.0010, 0.033, 0.061, 0.225. The models are
random and tiny, so errors do not average out as they do in real ones; activations are int8 from q8 on."""


@pytest.mark.parametrize(("name", "preset"), [
    (name, preset) for number, name in enumerate(NAMES) for preset in ("f16", ("q8", "q6")[number % 2], "q4")])
def test_presets(opened: Open, name: str, preset: str) -> None:
    tokens, expected, kept = golden(name)
    logits = all_logits(opened(name, preset), tokens)[kept]
    assert np.sqrt(np.square(logits - expected).mean()) < BOUNDS[preset] * expected.std()


@pytest.mark.parametrize("name", NAMES)
def test_f16_cache(opened: Open, name: str) -> None:
    """Keys and values in half precision: a root mean square error below 3e-3 standard deviations."""
    tokens, expected, kept = golden(name)
    logits = all_logits(opened(name, "f32"), tokens, cache_type="f16")[kept]
    assert np.sqrt(np.square(logits - expected).mean()) < 3e-3 * expected.std()


@pytest.mark.parametrize(("name", "preset"), [
    *((name, "q4") for name in NAMES), ("llama3-tied", "f32"), ("qwen2", "f32"),
    ("llama-f16", "f16"), ("llama-f16", "q8"), ("llama-f16", "q6")])
def test_chunks_threads_and_turns_change_no_bit(opened: Open, name: str, preset: str) -> None:
    bundle, (tokens, *_) = opened(name, preset), golden(name)
    cache_type = "f16" if preset == "q4" else "f32"
    once = all_logits(bundle, tokens, threads=1, chunk=512, cache_type=cache_type)
    assert np.isfinite(once).all()
    for threads in (1, 2, 3):
        for chunk in (1, 7, 64, 512):
            logits = all_logits(bundle, tokens, threads=threads, chunk=chunk, cache_type=cache_type)
            assert (logits == once).all(), (threads, chunk)
    for threads, pieces in ((1, [1] * 60), (2, [1] * 60), (2, [1, 2, 3, 4, 5, 6, 7, 8, 9, 15]), (3, [59, 1])):
        logits = all_logits(bundle, tokens, pieces, threads=threads, chunk=13, cache_type=cache_type)
        assert (logits == once).all(), (threads, pieces)


@pytest.mark.parametrize("preset", ["f32", "q4"])
@pytest.mark.parametrize("name", NAMES)
def test_cut_sessions_are_as_if_never_longer(opened: Open, name: str, preset: str) -> None:
    bundle, (tokens, *_) = opened(name, preset), golden(name)
    once = all_logits(bundle, tokens)
    made, session = engine(bundle), Session(bundle.header.config, CONTEXT, "f32")
    made.forward(session, tokens)
    for length in (0, 1, 15, 16, 17, 33, 59):
        session.truncate(length)
        made.forward(session, tokens[::-1][:60 - length])
        session.truncate(length)
        assert (made.forward(session, tokens[length:], range(60 - length)) == once[length:]).all(), length
    made.close()


def test_two_engines_and_four_sessions_in_turns(opened: Open) -> None:
    """A step of each in turn: every session computes what it computes alone."""
    runs = []
    for name, preset, threads in (("llama3-tied", "q4", 2), ("qwen2", "f32", 3)):
        bundle, (tokens, *_) = opened(name, preset), golden(name)
        made = engine(bundle, threads=threads, chunk=5)
        for own in (tokens, tokens[::-1]):
            runs.append((made, Session(bundle.header.config, CONTEXT, "f32"), own, all_logits(bundle, own)))
    for start in range(0, 60, 6):
        for made, session, own, expected in runs:
            logits = made.forward(session, own[start:start + 6], range(6))
            assert (logits == expected[start:start + 6]).all()
    for made in {id(run[0]): run[0] for run in runs}.values():
        made.close()
