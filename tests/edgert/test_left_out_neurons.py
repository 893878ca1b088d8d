"""Sparse models with predictors that are loaded with `max_loss`: their answers are of one mode; and what is told."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import small_engine
from click.testing import CliRunner
from ran import ran
from tiny_model import change_header, give_tokenizer, write_model

import edgert
from edgert.apps.chat_statistics import statistics_lines
from edgert.bundle import Bundle
from edgert.bundle.header import PREDICTORS, NeuronLoss
from edgert.cli import cli
from edgert.commands.price import left_out_text, tell_price
from edgert.commands.statistics import left_out_use
from edgert.converters.convert import convert
from edgert.errors import BundleError, SessionError, SourceError

MISSES = [2000, *range(1500, 0, -100)]
CURVE: list[list[Any]] = [[0.02, 0.005, 0.2, 0.99, MISSES], [0.3, 0.02, 0.1, 0.9, MISSES],
                          [0.5, 0.2, 0.05, 0.6, MISSES]]
PROMPT, SETTINGS = "Of rivers and of hills, and", {"max_tokens": 24, "ignore_eos": True}
TEXT = "The quick brown fox of the hills jumps over the lazy dog by the river. " * 20
Load = Callable[..., edgert.Model]


def write_sparse(folder: Path, **options: Any) -> Path:
    return give_tokenizer(write_model(folder, size=0.3, hidden_act="relu", hidden_size=64, intermediate_size=300,
                                      num_hidden_layers=3, vocab_size=258, max_position_embeddings=512, **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sparse(tmp_path_factory.mktemp("neurons") / "model")
    (text := folder.with_name("text.txt")).write_text(TEXT)
    convert(str(folder), folder.with_name("made.edge"), texts=[text], predictors=True)
    return folder.with_name("made.edge")


def with_curve(made: Path, out: Path, curve: object) -> Path:
    return change_header(made, out, lambda header: header["quantization"].update(neuron_loss=curve))


@pytest.fixture(scope="module")
def bundle(made: Path) -> Path:
    return with_curve(made, made.with_name("curve.edge"), CURVE)


@pytest.fixture(scope="module")
def plain(made: Path) -> Path:
    """The same model without predictors."""
    convert(str(made.with_name("model")), made.with_name("plain.edge"), calibrate=False)
    return made.with_name("plain.edge")


@pytest.fixture
def load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(keep, …): the model, with room for so many of its neurons, from 0 to 1."""
    def loaded(keep: float, **settings: Any) -> edgert.Model:
        left_out = NeuronLoss(*CURVE[1]) if settings.get("max_loss") else None
        small_engine.use_plan(monkeypatch, bundle, keep=keep, attention=1.0, head=1.0, chunk=40, rows=17, context=256,
                              left_out=left_out)
        return edgert.load(bundle, **{"threads": 2, "context": 256, "speculation": "off", **settings})

    return loaded


def test_the_same_at_every_budget_and_number_of_threads(load: Load) -> None:
    with load(1.0) as model:
        exact = model.generate(PROMPT, **SETTINGS).text()
        assert model.left_out is None
    answers = []
    for keep, threads in ((1.0, 1), (0.4, 2), (0.0, 3)):
        with load(keep, max_loss=0.05, threads=threads) as model:
            assert model.left_out == NeuronLoss(*CURVE[1]) and model.price == 0.02
            answers.append(model.generate(PROMPT, **SETTINGS).text())
    with load(0.4, max_loss=0.05, speculation=3) as model:
        answers.append(model.generate(PROMPT, **SETTINGS, max_loss=0).text())
    assert len(set(answers)) == 1 and answers[0] != exact


def test_what_it_costs_is_measured(made: Path) -> None:
    """Higher thresholds leave out more, and never cost less; predictors find most of what is active."""
    with Bundle(made) as opened:
        points = opened.header.losses
        assert all(isinstance(point, NeuronLoss) for point in points) and len(points) == 6
    for before, after in pairwise(points):
        assert before.nats <= after.nats and before.recall >= after.recall and before.computed >= after.computed
    assert points[0].recall > 0.9 and points[0].nats < points[-1].nats and points[-1].recall < 0.999


def test_a_session_goes_on_with_the_same_alone(load: Load, tmp_path: Path) -> None:
    with load(1.0, max_loss=0.05) as model:
        model.generate(PROMPT, **SETTINGS).text()
        model.save_session(tmp_path / "lossy")
    with load(1.0) as model, pytest.raises(SessionError, match=(
            r"without neurons that are active with less than 30 %, .* with all neurons; give --max-loss 2\.0202%, or")):
        model.open_session(tmp_path / "lossy")
    with load(0.2, max_loss=0.03) as model:
        model.open_session(tmp_path / "lossy")


def test_what_is_told(load: Load, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load(1.0, max_loss=0.05) as model:
        tell_price(model, 0.05)
        said = " ".join(capsys.readouterr().err.split())
        assert said == ("max-loss 5 %: neurons that are active with a probability below 30 % are left out, 10 % of all "
                        "stay, 90 % of those that are active; as was measured while converting, a token is 2 % less "
                        "likely for it, at every memory budget and number of threads the same")
        assert left_out_use(model) == {"threshold": 0.3, "loss_per_token": 0.0202, "computed": 0.1, "recall": 0.9}
        assert any("neurons that are active with a probability below 30 %, so" in line
                   for line in statistics_lines(model, None))
    with Bundle(bundle) as opened:
        assert "leaves out no neurons: the least that this bundle knows to leave out costs 0.51 %; give at least " in (
            left_out_text(opened.header, 0.001))


def test_a_bundle_without_predictors(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with edgert.load(plain, context=256, threads=1, max_loss=0.05) as model:
        tell_price(model, 0.05)
        assert "does not say what that costs; convert it again, with --predictors" in " ".join(
            capsys.readouterr().err.split())
        assert model.left_out is None


def test_commands(bundle: Path) -> None:
    run = ("run", str(bundle), "-p", PROMPT, "-n", "8", "--context", "256", "--ignore-eos")
    exact, lossy = ran(*run), ran(*run, "--max-loss", "5%")
    assert "left_out" not in exact and lossy["left_out"]["threshold"] == 0.3
    planned = ran("plan", str(bundle), "--memory", "400M", "--context", "256", "--max-loss", "5%")
    assert planned["left_out"]["recall"] == 0.9 and planned["parts"]["predictors"] > 0
    assert "predictors" not in ran("plan", str(bundle), "--memory", "400M", "--context", "256")["parts"]
    found = ran("bench", str(bundle), "--max-loss", "5%", "-r", "1", "-n", "4", "--prefill", "0")
    assert found["max_loss"] == 0.05 and "no_loss" in found
    shown = CliRunner().invoke(cli, ["inspect", str(bundle)]).output
    assert "0.51 % (20 % stay), 2.1 % (10 % stay), 23 % (5 % stay)" in shown and "for predictors" in shown


def test_models_that_have_none(tmp_path: Path, made: Path) -> None:
    folder = give_tokenizer(write_model(tmp_path / "silu", vocab_size=258))
    with pytest.raises(SourceError, match="this model's activation, silu, makes no zeros; convert it without them"):
        convert(str(folder), tmp_path / "m.edge", predictors=True)
    done = CliRunner().invoke(cli, ["convert", str(made.with_name("model")), str(tmp_path / "m.edge"), "--predictors",
                                    "--no-calibrate"])
    assert done.exit_code == 2 and "are computed while calibrating" in " ".join(done.output.split())
    assert not list(tmp_path.glob("m.edge*"))


def test_headers_that_are_refused(made: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "changed.edge"
    m = MISSES
    for curve in ({}, 3, [3], [[0.1, 0.1, 0.2, 0.9]], [[0.1, 0.1, "0.2", 0.9, m]], [[0.0, 0.1, 0.2, 0.9, m]],
                  [[1.0, 0.1, 0.2, 0.9, m]], [[0.1, -0.1, 0.2, 0.9, m]], [[0.1, 101, 0.2, 0.9, m]],
                  [[0.1, 0.1, 1.2, 0.9, m]], [[0.1, 0.1, 0.2, -0.9, m]], [[0.1, 0.1, 0.2, 0.9, 1]],
                  [[0.1, 0.1, 0.2, 0.9, m[1:]]], [[0.1, 0.1, 0.2, 0.9, [10001, *m[1:]]]],
                  [[0.2, 0.1, 0.2, 0.9, m], [0.1, 0.2, 0.1, 0.8, m]], [[0.1, 0.2, 0.2, 0.9, m], [0.2, 0.1, 0.1, 1, m]]):
        with pytest.raises(BundleError, match="header is not"):
            Bundle(with_curve(made, out, curve))
    with pytest.raises(BundleError, match="section 'predictors' is missing"):
        Bundle(with_curve(plain, out, CURVE))
    for change, said in ((lambda h: h["sections"].pop(PREDICTORS), "not known|is missing"),
                         (lambda h: h["sections"].pop("layers.1.predicted"), "'layers.1.predicted' is missing"),
                         (lambda h: h["tensors"].pop("model.layers.0.mlp.predictor.out.bias"), "is missing"),
                         (lambda h: h["tensors"]["model.layers.0.mlp.predictor.in.weight"].update(rows=64), "shape"),
                         (lambda h: h["tensors"]["model.layers.0.mlp.predictor.in.weight"].update(section="resident"),
                          "expected 'predictors'"),
                         (lambda h: h["sections"]["layers.1.predicted"].update(
                             length=h["sections"]["layers.1.predicted"]["length"] - 4096), "is not")):
        with pytest.raises(BundleError, match=said):
            Bundle(change_header(made, out, change))


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """Weights so large that what the model computes overflows: one sentence, and no bundle."""
    folder = give_tokenizer(write_model(tmp_path / "model", size=1e15, hidden_act="relu", vocab_size=258))
    (text := tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(SourceError, match="the model makes what is no number; convert without --predictors"):
        convert(str(folder), tmp_path / "m.edge", "f32", texts=[text], predictors=True)
    assert not (tmp_path / "m.edge").exists()
    convert(str(folder), tmp_path / "m.edge", "f32", texts=[text])


def test_how_likely_a_text_is(bundle: Path, plain: Path, tmp_path: Path) -> None:
    """It changes, so a text can be measured with it."""
    (text := tmp_path / "text.txt").write_text(TEXT)

    def perplexity(*arguments: str) -> float:
        return float(ran("eval", str(bundle), "--text", str(text), "--window", "64", *arguments)["perplexity"])

    assert perplexity() != perplexity("--max-loss", "5%")
    refused = CliRunner().invoke(cli, ["eval", str(plain), "--text", str(text), "--max-loss", "5%"])
    assert refused.exit_code == 2 and "--max-loss goes with --prompts" in refused.output
