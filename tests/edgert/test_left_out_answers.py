"""Mixtures that are loaded with `max_loss`: their answers are of one mode, whatever the budget; and what is told."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import small_engine
from click.testing import CliRunner
from ran import ran
from tiny_model import change_header, give_tokenizer, write_bundle, write_mixture

import edgert
from edgert.apps.chat_statistics import statistics_lines
from edgert.apps.server.status import status
from edgert.bundle import Bundle
from edgert.bundle.header import ExpertLoss
from edgert.cli import cli
from edgert.commands.price import left_out_text, tell_price
from edgert.commands.shares import percent
from edgert.commands.statistics import left_out_use
from edgert.converters.convert import convert
from edgert.errors import ModelError, SessionError
from edgert.generation.lenience import Account
from edgert.memory.plan import Planner
from edgert.residency.device import Device
from edgert.watching import Watch

CURVE = [[0.1, 0.005, 2.9, 0.95], [0.25, 0.02, 2.4, 0.7], [0.35, 0.2, 1.5, 0.3]]
PROMPT, SETTINGS = "Of rivers and of hills, and", {"max_tokens": 24, "ignore_eos": True}
Load = Callable[..., edgert.Model]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_mixture(tmp_path_factory.mktemp("left-out") / "model")
    convert(str(give_tokenizer(folder)), folder.with_name("made.edge"), "q4")
    return folder.with_name("made.edge")


def with_curve(made: Path, curve: list[list[float]]) -> Path:
    return change_header(made, made.with_name(f"{len(curve)}.edge"),
                         lambda header: header["quantization"].update(expert_loss=curve))


@pytest.fixture(scope="module")
def bundle(made: Path) -> Path:
    return with_curve(made, CURVE)


@pytest.fixture
def load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(keep, …): the model, with room for so many of its experts, from 0 to 1."""
    def loaded(keep: float, **settings: Any) -> edgert.Model:
        small_engine.use_plan(monkeypatch, bundle, keep=keep, attention=1.0, head=1.0, chunk=40, rows=17, context=256)
        return edgert.load(bundle, **{"threads": 2, "context": 256, "speculation": "off", **settings})

    return loaded


def test_the_same_at_every_budget_and_number_of_threads(load: Load) -> None:
    with load(1.0) as model:
        assert model.left_out is None and model.price == 0
        exact = model.generate(PROMPT, **SETTINGS).text()
        assert model.experts_per_token is None
    answers = []
    for keep, threads in ((1.0, 1), (0.4, 2), (0.0, 3)):
        with load(keep, max_loss=0.05, threads=threads) as model:
            assert model.left_out == ExpertLoss(0.25, 0.02, 2.4, 0.7) and model.price == 0.02
            answers.append(model.generate(PROMPT, **SETTINGS, max_loss=0.05).text())
            stay = model.experts_per_token
            assert stay is not None and 1 <= stay < 3
            assert left_out_use(model) == {"threshold": 0.25, "loss_per_token": 0.0202,
                                           "experts_per_token": round(stay, 3), "of_experts": 3}
            (line,) = [line for line in statistics_lines(model, None) if line.startswith("left out: ")]
            assert line.endswith(f"; {stay:.2f} of 3 stay")
            assert "less than 25 % of" in line and "2 % less likely" in line
    assert answers == answers[:1] * 3 and answers[0] != exact


def test_as_much_as_was_measured_to_cost_no_more(load: Load) -> None:
    for max_loss, threshold in ((0.004, None), (0.00502, 0.1), (0.02, 0.1), (0.0203, 0.25), (1.0, 0.35)):
        with load(1.0, max_loss=max_loss) as model:
            assert (model.left_out and model.left_out.threshold) == threshold
    for wrong in (-0.1, 1.5, "3%", math.nan):
        with pytest.raises(ModelError, match=r"max_loss is .*; it goes from 0 to 1, for 100 %"):
            load(1.0, max_loss=wrong)


def test_what_is_left_of_it_is_for_guesses() -> None:
    account = Account(0.05, 0.02)
    assert account.pays(math.log1p(0.05) - 0.02 - 1e-9, 1) and not account.pays(1e-6, 1)
    assert not Account(0.01, 0.02).open and not Account(0.0, 0.02).open


def test_a_session_goes_on_with_the_experts_that_it_was_computed_with(load: Load, tmp_path: Path) -> None:
    with load(0.4, max_loss=0.05) as model:
        begun = model.generate(PROMPT, **SETTINGS)
        begun.text()
        ids = begun.prompt_ids + begun.token_ids
        expected = model.generate(ids, **SETTINGS).text()
        model.generate(PROMPT, **SETTINGS).text()
        model.save_session(tmp_path / "lossy")
    with load(1.0) as model:
        with pytest.raises(SessionError, match="without experts that weigh less than 25 %, and this model is loaded to "
                                               r"compute with all experts; give --max-loss 2\.0202%, or begin"):
            model.open_session(tmp_path / "lossy")
        model.generate(PROMPT, **SETTINGS).text()
        model.save_session(tmp_path / "exact")
    with load(0.2, max_loss=0.020202) as model:
        with pytest.raises(SessionError, match=r"was computed with all experts, .*; leave --max-loss away, or"):
            model.open_session(tmp_path / "exact")
        model.open_session(tmp_path / "lossy")
        answer = model.generate(ids, **SETTINGS)
        assert answer.text() == expected and answer.statistics.prompt_computed < 10


def test_what_it_costs_is_told(load: Load, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(model: edgert.Model, max_loss: float) -> str:
        tell_price(model, max_loss)
        return " ".join(capsys.readouterr().err.split())

    with load(1.0, max_loss=0.05, speculation="auto") as model:
        said = told(model, 0.05)
        assert said.startswith("max-loss 5 %: experts with less than 25 % of a token's weight are left out, about 2.4 "
                               "of 3 stay; as was measured while converting, a token is 2 % less likely for it, at "
                               "every memory budget and number of threads the same; what is left of it, 2.9 %, pays")
        assert told(model, 0.0).startswith("max-loss 0 % is for guesses alone, as the model was loaded with 5 %: exp")
        assert "what is left" not in told(model, 0.0) and "what is left of it, 47 %, pays" in told(model, 0.5)
    with load(1.0, max_loss=0.05) as model:  # nothing is guessed
        assert told(model, 0.05).endswith("the same") and told(model, 0.5).endswith("the same")
    with load(1.0, max_loss=0.001, speculation="auto") as model:
        few = told(model, 0.001)
        assert "leaves out no experts: the least that this bundle knows to leave out costs 0.51 %; give at least " \
               "that. Guesses that" in few and "0.51 %; give" in told(model, 0.004)
        assert "settled when a model is loaded; start it with --max-loss. Guesses that" in told(model, 0.05)
        assert told(model, 0.0) == ""
        assert model.header.left_out_for(0.0051) is not None  # what is told to give is enough
        tell_price(model, 0.001, answers=False)
        assert capsys.readouterr().err.endswith("give at least that\n")
    with edgert.load(with_curve(made, []), context=256, threads=1, max_loss=0.05) as model:
        assert "does not say what that costs; convert it again, without --no-calibrate" in told(model, 0.05)


def test_why_none_can_be_left_out(made: Path, tmp_path: Path) -> None:
    """Where each token has one expert, and where it costs more than may be given."""
    path = write_bundle(tmp_path / "one.edge", model_type="mixtral", num_local_experts=6, num_experts_per_tok=1)
    with Bundle(path) as one, Bundle(with_curve(made, [[0.1, 0.9, 2.9, 0.9], [0.2, 99, 2, 0.8]])) as dear:
        assert left_out_text(one.header, 0.03) == "max-loss 3 % leaves out no experts: each token has only one"
        assert left_out_text(dear.header, 0.03) == ("max-loss 3 % leaves out no experts: the least that this bundle "
                                                   "knows to leave out costs more than 100 %")
    shown = CliRunner().invoke(cli, ["inspect", str(path)]).output
    assert "1 a token" in shown and "left out for" not in shown
    path = with_curve(made, [[0.1, 0.005, 2.9, 0.9], [0.2, 99, 2, 0.8]])
    shown = CliRunner().invoke(cli, ["inspect", str(path)]).output
    assert "0.51 % (2.9 stay), more than 100 % (2.0 stay)" in shown


def test_percentages() -> None:
    for share, near, least in ((0.0, "0 %", "0 %"), (0.0000012, "0.00012 %", "0.00012 %"), (0.0301, "3 %", "3.1 %"),
                               (0.5, "50 %", "50 %"), (0.9901, "99 %", "100 %"), (0.996, "100 %", "100 %"),
                               *((share, "more than 100 %", "more than 100 %") for share in (1.01, 1e43))):
        assert (percent(share), percent(share, at_least=True)) == (near, least)


def test_commands(bundle: Path, tmp_path: Path) -> None:
    """What is left out reaches run, eval of a text, and bench without a budget."""
    run = ("run", str(bundle), "-p", PROMPT, "-n", "8", "--context", "256", "--ignore-eos")
    exact, lossy = ran(*run), ran(*run, "--max-loss", "5%")
    assert "left_out" not in exact and lossy["left_out"]["threshold"] == 0.25
    (text := tmp_path / "text.txt").write_text("Of rivers and of hills. " * 12)
    evaluated = ("eval", str(bundle), "--text", str(text), "--window", "64")
    exact, lossy = ran(*evaluated), ran(*evaluated, "--max-loss", "5%")
    assert exact["perplexity"] != lossy["perplexity"] and lossy["left_out"]["loss_per_token"] == 0.0202
    (prompts := tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Of", "answer": "hills"}))
    few = CliRunner().invoke(cli, ["eval", str(bundle), "--prompts", str(prompts), "--max-loss", "0.1%"])
    assert "leaves out no experts" in few.output and "Guesses that" in few.output
    planned = ran("plan", str(bundle), "--memory", "400M", "--context", "256", "--max-loss", "5%")
    assert planned["left_out"] == {"threshold": 0.25, "nats": 0.02, "experts": 2.4, "missed": 0.7}
    found = ran("bench", str(bundle), "--max-loss", "5%", "-r", "1", "-n", "4", "--prefill", "0")
    assert found["max_loss"] == 0.05 and "no_loss" in found
    refused = CliRunner().invoke(cli, ["bench", str(bundle), "--max-loss", "0.1%", "-r", "1", "-n", "4"])
    assert refused.exit_code == 2 and "costs 0.51 %; give at least that. Without --memory it changes nothing" in (
        " ".join(refused.output.split()))


def test_the_plan_expects_fewer_bytes(tmp_path: Path) -> None:
    """As many as were missed fewer; the budgets that work are the same."""
    path = write_bundle(tmp_path / "m.edge", "f32", model_type="mixtral", hidden_size=64, intermediate_size=150,
                        num_hidden_layers=4, vocab_size=90, num_local_experts=12, num_experts_per_tok=3)
    path = change_header(path, tmp_path / "curve.edge", lambda h: h["quantization"].update(expert_loss=CURVE))
    device = Device("a test's", True, 1 << 16, 2, 1e9, 1e-4, [])
    with Bundle(path) as opened:
        header = opened.header
        exact, lossy = (Planner(of, process=0, context=64, cache_type="f32", chunk=16, threads=2)
                        for of in (header, header.leaving_out(header.left_out_for(0.05))))
        assert exact.smallest(device) == lossy.smallest(device) and exact.whole == lossy.whole
        budget = exact.smallest(device)
        plans = [planner.plan(budget, lambda: device) for planner in (exact, lossy)]
        assert plans[0].placement == plans[1].placement and plans[0].missed > 0
        assert plans[1].missed == pytest.approx(0.7 * plans[0].missed, abs=1)
        assert plans[0].streamed - plans[1].streamed == plans[0].missed - plans[1].missed
        missing = [1 - (plan.expected_hits or 0) for plan in plans]
        assert missing[1] == pytest.approx(missing[0] * 0.7 / 0.8)


def test_the_page_is_told(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgert.Model, "budgets", lambda model: (0, 0))  # of a plan that was made for this test

    def told(**settings: Any) -> Any:
        with load(0.5, **settings) as model:
            service = SimpleNamespace(watch=Watch(model), counts=SimpleNamespace(tokens=0, drafted=0, accepted=0),
                                      state="ready", error=None, waiting=0, answering=False)
            return status(cast(Any, service), "m", 0)["left_out"]

    assert told() is None and told(max_loss=0.05) == {
        "of": "experts", "threshold": 0.25, "loss_per_token": 0.0202}
