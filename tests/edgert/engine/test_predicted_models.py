"""Sparse models that leave out neurons: what a predictor takes to be zero is neither read nor computed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_file import FaultyFile
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import cancelled_again_and_again, make_engine

from edgert.bundle import Bundle, Header
from edgert.bundle.header import PREDICTORS, NeuronLoss
from edgert.converters import layout
from edgert.converters.calibration import Calibration
from edgert.converters.calibration_text import windows_of
from edgert.converters.convert import convert
from edgert.converters.left_out import Divergence
from edgert.converters.open_source import open_source
from edgert.engine.engine import Engine
from edgert.engine.session import Session
from edgert.errors import BundleError, ModelError
from edgert.kernels import native
from edgert.memory.plan import Planner
from edgert.residency.device import Device
from edgert.residency.file import FlashFile
from edgert.residency.window import Window

sys.path.append(str(Path(__file__).parents[2] / "large"))
import make_sparse

TOKENS = make_sparse.text(600, 24, seed=1)
LEFT_OUT = NeuronLoss(0.3, 0.0, 0.1, 0.9, [1000] * 16)
"""Below a threshold at which some that are active are left out."""


@pytest.fixture(scope="module", params=[("tiny-opt", "q4"), ("tiny-reglu", "q4"), ("tiny-reglu", "f32")], ids=repr)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Bundle]]:
    shape, preset = request.param
    folder = tmp_path_factory.mktemp("predicted")
    made, text = make_sparse.write(folder / "model", shape, active=0.05), folder / "text"
    text.write_text((made / "calibration.txt").read_text()[:6000])
    with pytest.MonkeyPatch.context() as patch:
        if preset == "f32":  # nothing of it is rounded
            patch.setattr(layout, "PREDICTOR_FORMAT", "f32")
        convert(str(made), folder / "m.edge", preset, texts=[text], predictors=True)
    with Bundle(folder / "m.edge") as opened:
        yield made, opened


def all_logits(engine: Engine, *, pieces: int = len(TOKENS), tokens: list[int] = TOKENS) -> np.ndarray:
    """The logits after every token, so many at a time."""
    session = Session(engine.config, 64, "f32")
    every = [engine.forward(session, tokens[at:at + pieces], range(len(tokens[at:at + pieces])))
             for at in range(0, len(tokens), pieces)]
    session.close()
    return np.concatenate(every)


@pytest.fixture(scope="module")
def expected(model: tuple[Path, Bundle]) -> np.ndarray:
    engine = make_engine(model[1], left_out=LEFT_OUT)
    every = all_logits(engine)
    engine.close()
    return every


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """To the bit."""
    return np.array_equal(one.view(np.int32), other.view(np.int32))


def test_what_is_computed_is_what_was_measured(model: tuple[Path, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the calibration in NumPy, exact and with neurons left out."""
    folder, bundle = model
    if bundle.header.quantization["preset"] != "f32":
        pytest.skip("its weights are rounded")
    seen: list[np.ndarray] = []
    add = Divergence.add
    monkeypatch.setattr(Divergence, "add", lambda self, logits: (seen.append(logits.copy()), add(self, logits)))
    source = open_source(str(folder))
    windows = windows_of(source, [folder.parent / "text"])
    in_units = [(n.units(source.config).neurons,) * 2 for n in bundle.header.neurons]
    Calibration(source, windows, set(), thresholds=[LEFT_OUT.threshold], in_units=in_units).left_out_losses()
    exact, lossy = (of[:24] for of in np.concatenate(seen, 2))
    made = []
    for left_out in (None, LEFT_OUT):
        engine = make_engine(bundle, left_out=left_out)
        made.append(all_logits(engine, tokens=windows[0, :24].tolist()))
        engine.close()
    for of_engine, of_numpy in zip(made, (exact, lossy), strict=True):
        assert np.abs(of_engine - of_numpy).max() < 1e-4 * np.abs(of_numpy).max()
    assert np.abs(exact - lossy).max() > 1e-3 * np.abs(exact).max()


def test_it_is_nearly_the_model(model: tuple[Path, Bundle], expected: np.ndarray) -> None:
    engine = make_engine(model[1])
    exact = all_logits(engine)
    engine.close()
    assert not same(exact, expected)
    assert np.abs(exact - expected).mean() < 0.1 * exact.std()


def test_a_predictor_that_leaves_nothing_out_changes_nothing(model: tuple[Path, Bundle]) -> None:
    """But for the rounding of what decides, which is in another format there."""
    engines = [make_engine(model[1], left_out=of) for of in (None, NeuronLoss(1e-30, 0.0, 1.0, 1.0, [1000] * 16))]
    exact, every = map(all_logits, engines)
    for engine in engines:
        engine.close()
    small = 1e-3 if model[1].header.quantization["preset"] == "f32" else 0.2
    assert np.abs(every - exact).max() < small * np.abs(exact).max()


@settings(max_examples=7)
@given(keep=st.sampled_from([0.0, 0.5, 1.0]), attention=st.sampled_from([0.0, 0.5, 1.0]),
       head=st.sampled_from([0.0, 1.0]), threads=st.integers(1, 4), readers=st.integers(1, 5),
       pieces=st.sampled_from([3, 24]), chunk=st.sampled_from([4, 64]))
def test_the_same_at_every_placement(model: tuple[Path, Bundle], expected: np.ndarray, pieces: int,
                                     **options: Any) -> None:
    engine = make_engine(model[1], left_out=LEFT_OUT, **options)
    engine._team.set(patience=20 * 10 ** 9)
    assert same(all_logits(engine, pieces=pieces), expected)
    assert same(all_logits(engine, pieces=1), expected)
    engine.close()


def test_planned_for_any_budget(model: tuple[Path, Bundle], expected: np.ndarray) -> None:
    """What is planned keeps to the budget; what decides exactly takes none of it."""
    bundle, device = model[1], Device("a test's", True, 1 << 16, 2, 1e9, 1e-4, [])

    def planner(header: Header) -> Planner:
        return Planner(header, process=0, context=64, cache_type="f32", chunk=64, threads=2)

    lossy = planner(bundle.header.leaving_out(LEFT_OUT))
    for budget in np.linspace(lossy.smallest(device), lossy.whole, 4).astype(int).tolist():
        plan = lossy.plan(budget, lambda: device)
        assert plan.needed <= budget and plan.parts["pinned gates"] == 0
        assert plan.parts["predictors"] == -(-bundle.header.sections[PREDICTORS].length // 4096) * 4096
        opened = Bundle(bundle.path)
        opened.load_for(64, LEFT_OUT)
        engine = Engine(opened, FlashFile(bundle.path), native.library(), plan.placement, chunk=plan.chunk, threads=2,
                        context=64, cache_type="f32", logit_rows=plan.verify_rows)
        assert same(all_logits(engine, pieces=5), expected)
        engine.close()
        opened.close()


def test_less_is_read(model: tuple[Path, Bundle]) -> None:
    """Of what decides nothing at all, where it would be streamed."""
    read = []
    for left_out in (None, LEFT_OUT):
        engine = make_engine(model[1], left_out=left_out, keep=0.3, attention=0.0, head=1.0, embedding=(
            0.0 if model[1].header.config.tie_word_embeddings else 1.0))
        all_logits(engine, pieces=1)
        read.append(engine.source.reading.bytes)
        engine.close()
    assert read[1] < read[0]


@pytest.mark.parametrize("fault", ["error", "flip"])
def test_every_read_made_to_fail_in_turn(model: tuple[Path, Bundle], fault: str) -> None:
    bundle = model[1]
    options = {"left_out": LEFT_OUT, "keep": 0.2, "attention": 1.0, "head": 1.0, "readers": 3,
               "embedding": 0.0 if bundle.header.config.tie_word_embeddings else 1.0}
    file = FaultyFile(bundle.path, -1, fault)
    engine = make_engine(bundle, file=file, **options)
    loading = file.reads
    all_logits(engine, pieces=1)
    engine.close()
    for number in range(loading, loading + (file.reads - loading) * 3 // 4, 41):  # of guesses there may be fewer
        faulty = FaultyFile(bundle.path, number, fault)
        engine = make_engine(bundle, file=faulty, **options)
        faulty.again = 2
        with pytest.raises(BundleError, match="input/output error" if fault == "error" else "damaged"):
            all_logits(engine, pieces=1)
        engine.close()


def test_cancelled_at_any_moment_and_done_again(model: tuple[Path, Bundle], expected: np.ndarray) -> None:
    engine = make_engine(model[1], left_out=LEFT_OUT, keep=0.2, attention=0.5, head=0.5, readers=3)
    assert isinstance(engine._weights._window, Window)
    assert cancelled_again_and_again(engine, engine._weights._window, TOKENS, expected.view(np.int32)) > 3
    engine.close()


def test_drafts_take_what_is_there(model: tuple[Path, Bundle], expected: np.ndarray) -> None:
    engine = make_engine(model[1], left_out=LEFT_OUT, keep=0.5, attention=1.0, head=1.0, chunk=17)
    assert engine.drafts
    session = Session(engine.config, 64, "f32")
    before = engine.source.reading.bytes
    for token in TOKENS[:4]:
        assert np.isfinite(engine.draft(session, token)).all()
    assert engine.source.reading.bytes == before
    engine.close()


def test_a_damaged_predictor_section(model: tuple[Path, Bundle], tmp_path: Path) -> None:
    """It is named; a model that does without it is not concerned."""
    bundle = model[1]
    data = bytearray(bundle.path.read_bytes())
    data[bundle.header.sections[PREDICTORS].offset + 99] ^= 1
    broken = tmp_path / "m.edge"
    broken.write_bytes(data)
    with Bundle(broken) as opened:
        make_engine(opened).close()
        with pytest.raises(BundleError, match=r"section 'predictors' .* damaged, convert the model again"):
            make_engine(opened, left_out=LEFT_OUT)
        assert len(opened.verify()) == 1


def window_of(engine: Engine) -> Window:
    assert isinstance(engine._weights._window, Window)
    return engine._weights._window


def test_an_older_request_does_not_take_a_newer_one_with_it(model: tuple[Path, Bundle]) -> None:
    """What a layer asked for may come while it waits; then the next one asks before anybody has looked."""
    engine = make_engine(model[1], left_out=LEFT_OUT, keep=0.5, attention=1.0, head=1.0)
    window, planned = window_of(engine), []
    with window._lock:
        window._plan = lambda layer: planned.append(layer)  # type: ignore[method-assign]
        window._plan_ahead = lambda layer: planned.append(layer)  # type: ignore[method-assign]
        window._asked[2:4], window._asked_ahead[3:5] = (2, 3), (3, 4)
        window._take()
        assert planned == [window._layers[3], window._layers[4]]
        assert (window._asked == -1).all() and (window._asked_ahead == -1).all()
    engine.close()


def test_while_drafting_nothing_is_planned(model: tuple[Path, Bundle]) -> None:
    """A draft does not say what it needs, so nothing that is there may go."""
    engine = make_engine(model[1], left_out=LEFT_OUT, keep=0.5, attention=1.0, head=1.0, chunk=17)
    window, session = window_of(engine), Session(engine.config, 64, "f32")
    engine.forward(session, TOKENS[:1])
    window._asked_ahead[2] = 2  # a reader has not woken yet
    engine.draft(session, TOKENS[1])
    assert (window._asked_ahead == -1).all() and not window._ahead
    session.close()
    engine.close()


def test_what_goes_wrong_in_planning_is_said_at_once(model: tuple[Path, Bundle]) -> None:
    engine = make_engine(model[1], left_out=LEFT_OUT, keep=0.2, attention=1.0, head=1.0)
    window = window_of(engine)

    def wrong(layer: object) -> None:
        raise ZeroDivisionError("of no kind that is expected here")

    window._plan = wrong  # type: ignore[assignment, method-assign]
    for _ in range(2):
        with pytest.raises(ModelError, match="planning what to read failed: ZeroDivisionError"):
            all_logits(engine, pieces=1)
    engine.close()
