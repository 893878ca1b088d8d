"""`edgert eval --modes` and `--predictors` on the command line: what does not go together, and what cannot be done."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgert.commands import eval_modes
from edgert.commands.eval import command
from edgert.errors import EdgertError
from edgert.measuring.modes import modes_of


def refused(*arguments: object) -> str:
    """What is wrong with these arguments, one line."""
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code != 0
    if isinstance(result.exception, EdgertError):
        return str(result.exception)
    assert result.exit_code == 2, result.exception
    return result.output.splitlines()[-1].removeprefix("Error: ")


@pytest.mark.parametrize(("arguments", "message"), [
    (("--modes", "--max-loss", "3%"), "--max-loss does not go with --modes"),
    (("--modes", "--kv-type", "q8", "--against", "x.gguf"), "--against and --kv-type do not go with --modes"),
    (("--modes", "--shares", "50%"), "--shares does not go with --modes"),
    (("--modes", "--memory", "600M,lots"), "'lots' is not a size; write it like 600M or 1.5G"),
    (("--modes", "--png", "none/x.png"), "none/x.png: there is no such folder to write a picture into"),
    (("--modes", "--text", "none.txt"), "none.txt: no such file or directory"),
    (("--modes", "--predictors"), "--modes does not go with --predictors"),
    (("--predictors", "--memory", "600M"), "--memory does not go with --predictors"),
    (("--predictors", "--shares", "half"), "'half' are no shares; give some like 70%,50%"),
    (("--predictors", "--shares", "0%"), "'0%' are no shares; give some like 70%,50%"),
    (("--text", "t", "--tokens", "8"), "--tokens, --runs and --png go with --modes"),
    (("--text", "t", "--shares", "50%"), "--shares goes with --predictors"),
    (("--text", "t", "--text", "u"), "several bundles go with --modes, several texts with --modes and --predictors"),
])
def test_what_does_not_go_together(smollm2: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(smollm2, *arguments)


def test_several_bundles(smollm2: Path) -> None:
    assert "one bundle is given twice" in refused("--modes", smollm2, smollm2)
    assert "several bundles go with --modes" in refused("--text", "t", smollm2, smollm2)
    assert "--predictors takes one bundle" in refused("--predictors", smollm2, smollm2)


def test_texts_that_are_too_short(smollm2: Path, tmp_path: Path) -> None:
    (text := tmp_path / "short.txt").write_text("No.")
    few = "short.txt: the text has 2 tokens; perplexity needs at least 4"
    assert refused("--modes", smollm2, "--text", text) == few
    assert "predictors are compared on windows of 256, so give a longer text" in refused("--predictors", smollm2,
                                                                                        "--text", text)


def test_a_table_of_modes(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in memory nothing is drafted: what is not measured is told, and not shown."""
    monkeypatch.setattr(eval_modes, "modes_of", lambda bundles: modes_of(bundles)[:3])
    (questions := tmp_path / "q.jsonl").write_text(json.dumps(
        {"question": "1 + 1 =", "choices": ["2", "9"], "answer": 0}))
    (prompts := tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Say yes.", "answer": "yes"}))
    (text := tmp_path / "t.txt").write_text("The sea is calm, the boats are out, and nobody asks for the time. " * 8)
    result = CliRunner().invoke(command, list(map(str, (
        "--modes", smollm2, "--memory", "600M", "--text", text, "--window", 32, "--questions", questions,
        "--prompts", prompts, "--tokens", 6))))
    assert result.exit_code == 0, result.exception
    lines = result.output.splitlines()
    assert lines[1].startswith("A exact ") and not lines[2]
    assert sum(line.startswith("600 MiB") for line in lines) == 2  # the table of this budget, and its plot
    assert "Not measured at 600 MiB, where nothing is drafted" in result.output
    assert "max-loss 1 %, max-loss 3 %." in result.output


@pytest.mark.parametrize("loss_of", ["texts", "answers"])
def test_experts_are_named_where_some_are_left_out(loss_of: str) -> None:
    modes = [{"name": "exact", "max_loss": 0.0, "loss_of": "texts", "budgets": [{"budget": 1 << 20}]},
             {"name": "more", "max_loss": 0.1, "loss_of": loss_of, "budgets": [{"budget": 1 << 20}]},
             {"name": "less", "max_loss": 0.01, "budgets": []}]
    notes = "\n".join(eval_modes._notes({"modes": modes, "budgets": [1 << 20]}))
    told = ("Of caches, experts or neurons left out and other", "all, and nothing can be left out for that: less.",
            "Of caches and other", "all: less.")
    assert [words in notes for words in told] == 2 * [loss_of == "texts"] + 2 * [loss_of != "texts"]
