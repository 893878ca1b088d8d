"""Experts that weigh little are left out: the logits are those of the formula, and the same wherever weights are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_engine import make_engine

from edgert.bundle import Bundle
from edgert.bundle.header import ExpertLoss
from edgert.converters.calibration import Calibration
from edgert.converters.convert import convert
from edgert.converters.left_out import Divergence
from edgert.converters.open_source import open_source
from edgert.engine.engine import Engine
from edgert.engine.session import Session

MODELS = Path(__file__).parents[2] / "golden" / "models"
TOKENS = np.random.default_rng(0).integers(0, 250, 48).tolist()


@pytest.fixture(scope="module", params=["mixtral", "olmoe", "gptoss", "deepseek", "granitemoe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Bundle]]:
    out = tmp_path_factory.mktemp("left-out") / "m.edge"
    convert(str(MODELS / request.param), out, "f32", calibrate=False)
    with Bundle(out) as bundle:
        bundle.load_for(64)
        yield MODELS / request.param, bundle


def logits_of(engine: Engine, pieces: int = len(TOKENS)) -> np.ndarray:
    session = Session(engine.config, 64, "f32")
    parts = [TOKENS[at:at + pieces] for at in range(0, len(TOKENS), pieces)]
    made = np.concatenate([engine.forward(session, part, range(len(part))) for part in parts])
    session.close()
    return made


def threshold_for(bundle: Bundle) -> float:
    """At which some of a token's experts are left out."""
    return round(0.9 / bundle.header.config.experts_per_token, 4)


def below(threshold: float) -> ExpertLoss | None:
    """What is left out; 0 for nothing."""
    return ExpertLoss(threshold, 0.0, 1.0, 1.0) if threshold else None


def test_logits_are_those_of_numpy(model: tuple[Path, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    path, bundle = model
    threshold, seen = threshold_for(bundle), []
    add = Divergence.add
    monkeypatch.setattr(Divergence, "add", lambda self, logits: (seen.append(logits.copy()), add(self, logits)))
    ((_, _, stay, _),) = Calibration(open_source(str(path)), np.array([TOKENS]), set(),
                                  thresholds=[threshold]).left_out_losses()
    exact, lossy = np.concatenate(seen, 2)
    for expected, of in ((exact, 0.0), (lossy, threshold)):
        engine = make_engine(bundle, left_out=below(of))
        made = logits_of(engine)
        assert np.abs(made - expected).max() < 2e-4 * np.abs(expected).max()
        counted = engine.routing.per_token
        engine.close()
        assert counted is None if not of else counted == pytest.approx(stay, abs=1e-3)
    assert 1 < stay < bundle.header.config.experts_per_token
    assert np.abs(lossy - exact).max() > 1e-3 * np.abs(exact).max()


def test_the_same_wherever_weights_come_from(model: tuple[Path, Bundle]) -> None:
    """Other logits than with all experts, but the same at every placement, number of threads, and of tokens at once;
    fewer experts are needed."""
    _, bundle = model
    threshold = threshold_for(bundle)
    every, needed = [], []
    for of in (threshold, 0.0):
        for keep, threads, pieces in ((1.0, 1, 48), (0.0, 2, 48), (0.3, 3, 1), (0.5, 2, 1), (0.0, 1, 5)):
            engine = make_engine(bundle, threads=threads, keep=keep, attention=1.0, head=1.0, left_out=below(of))
            engine._team.set(patience=20 * 10 ** 9)
            every.append(logits_of(engine, pieces))
            if pieces == 1:
                engine.source.expect(0)
                counts = engine.source.reading.experts
                assert counts is not None
                needed.append(counts.needed)
            engine.close()
    for made, like in [(made, every[0]) for made in every[1:5]] + [(made, every[5]) for made in every[6:]]:
        assert np.array_equal(made.view(np.int32), like.view(np.int32))
    assert not np.array_equal(every[0], every[5])
    assert needed[0] == needed[1] < needed[2] == needed[3]


def test_all_but_one_are_left_out(model: tuple[Path, Bundle]) -> None:
    _, bundle = model
    engine = make_engine(bundle, left_out=below(0.999), keep=0.2, attention=1.0, head=1.0)
    assert np.isfinite(logits_of(engine, 1)).all() and engine.routing.per_token == 1
    engine.close()
