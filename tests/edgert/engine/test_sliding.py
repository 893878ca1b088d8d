"""Layers that see a window of the latest positions, and caches that let go of the others."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_engine import make_engine

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.engine.retention import POLICIES
from edgert.engine.session import Session
from edgert.kernels.pages import PAGE

GEMMA = Path(__file__).parents[2] / "golden" / "models" / "gemma3"
CONTEXT, MOST, VOCABULARY = 12 * PAGE, 20 * PAGE, 263
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, 2 * MOST + 30).tolist()


def _bundle(folder: Path, **changes: Any) -> Bundle:
    """The golden model with another config.json."""
    shutil.copytree(GEMMA, folder / "model")
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    convert(str(folder / "model"), folder / "m.edge", "f32")
    return Bundle(folder / "m.edge")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """No layer sees more than 40 positions."""
    with _bundle(tmp_path_factory.mktemp("windows"), max_position_embeddings=MOST, sliding_window=40,
                 layer_types=["sliding_attention"] * 3) as opened:
        yield opened


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """One layer of three sees all."""
    with _bundle(tmp_path_factory.mktemp("mixed"), max_position_embeddings=MOST, sliding_window=300) as opened:
        yield opened


def _ends(bundle: Bundle, policy: str, **options: int) -> np.ndarray:
    """Logits of every hundredth token."""
    engine = make_engine(bundle, cache_type="f32", context=CONTEXT, policy=POLICIES[policy], **{"chunk": 64, **options})
    session, found = Session(engine.config, CONTEXT, "f32"), []
    count = CONTEXT if policy == "stop" else len(TOKENS)
    for at in range(0, count, 100):
        found.append(engine.forward(session, TOKENS[at:min(at + 100, count)])[0])
    engine.close()
    session.close()
    return np.array(found)


@pytest.mark.parametrize("policy", ["window", "heavy"])
def test_what_no_layer_sees_may_be_forgotten(windows: Bundle, policy: str) -> None:
    """Also after keys were turned to the first positions: logits are those of the last tokens, read alone. Three layers
    of 40 positions see 118 of them."""
    logits = _ends(windows, policy)
    engine = make_engine(windows, cache_type="f32", context=CONTEXT, chunk=64)
    for number in (9, 14, len(logits) - 1):
        end = min(100 * (number + 1), len(TOKENS))
        session = Session(engine.config, CONTEXT, "f32")
        alone = engine.forward(session, TOKENS[end - 200:end])[0]
        session.close()
        np.testing.assert_allclose(logits[number], alone, atol=2e-3 * alone.std())
    engine.close()


def test_a_layer_with_a_window_keeps_the_latest(mixed: Bundle) -> None:
    engine = make_engine(mixed, cache_type="f32", context=CONTEXT, policy=POLICIES["heavy"], chunk=64)
    session = Session(engine.config, CONTEXT, "f32")
    engine.forward(session, TOKENS[:CONTEXT + 1])
    kept = session._places.shape[-1]
    for layer, windowed in enumerate((True, False, True)):
        latest = np.arange(CONTEXT - kept, CONTEXT)
        assert np.array_equal(session._places[layer, 0], latest) == windowed
    engine.close()
    session.close()


@pytest.mark.parametrize("policy", ["stop", "window", "heavy"])
def test_nothing_else_decides(mixed: Bundle, policy: str) -> None:
    """Threads, chunks and streamed weights: the same bits."""
    expected = _ends(mixed, policy, threads=1)
    for options in ({"threads": 3, "chunk": 7}, {"threads": 2, "chunk": 100}):
        assert np.array_equal(_ends(mixed, policy, **options), expected)
