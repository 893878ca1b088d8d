"""Modes side by side: what each loses is counted as it says, and the front is the front."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import change_header, give_tokenizer, write_model

from edgert.commands.modes_chart import letters_of, percent, picture, scatter
from edgert.converters.convert import convert
from edgert.errors import EdgertError
from edgert.measuring.json_lines import SHIPPED
from edgert.measuring.modes import MIB, Mode, What, by_budget, measure_modes, modes_of, shipped_texts
from edgert.measuring.perplexity import windows


def at(budget: int, loss: float | None, speed: float) -> dict[str, Any]:
    return {"budget": budget * MIB, "loss": loss, "tok_s": speed, "bytes_a_token": 5e6, "pareto": False}


def test_modes_of_bundles() -> None:
    alone = modes_of(["a/m.edge"])
    assert [mode.name for mode in alone] == ["exact", "max-loss 1 %", "max-loss 3 %", "max-loss 5 %", "max-loss 10 %",
                                             "q8 cache", "q4 cache"]
    beside = modes_of(["a/m.edge", "b/m.edge", "c.edge"])
    assert beside[:7] == [mode._replace(name=f"a/m.edge, {mode.name}") for mode in alone]
    assert beside[7:] == [Mode("b/m.edge", "b/m.edge"), Mode("c.edge", "c.edge")]


def test_each_mode_is_measured(smollm2: Path, tmp_path: Path) -> None:
    """The q4 cache changes how likely a text is, max-loss which answers are given; a copy of the bundle changes
    nothing. A budget that holds some of the weights reads the others."""
    (questions := tmp_path / "q.jsonl").write_text(json.dumps(
        {"question": "The capital of France is", "choices": ["Paris", "a fish"], "answer": 0}))
    (prompts := tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Say yes.", "answer": "Yes"}))
    (tmp_path / "copy.edge").symlink_to(smollm2)
    text = shipped_texts()["prose"]
    what = What({"prose": text}, str(questions), str(prompts), 64, 128, 8, 1)
    modes = [Mode("exact", str(smollm2)), Mode("max-loss 10 %", str(smollm2), max_loss=0.1),
             Mode("q4 cache", str(smollm2), kv_type="q4"), Mode("copy", str(tmp_path / "copy.edge"))]
    found = measure_modes(modes, [158 * MIB], what, {"threads": 2})
    exact, lenient, cache, copy = found["modes"]
    assert exact["loss"] == copy["loss"] == 0 and exact["agreement"] == copy["agreement"] == 1
    assert exact["perplexity"] == copy["perplexity"] and exact["questions"]["right"] == 1
    assert cache["loss"] != 0 and cache["agreement"] < 1 and cache["same_answers"] in (0, 1)
    assert exact["budgets"][0]["bytes_a_token"] > 1e6 and exact["budgets"][0]["tok_s"] > 0
    assert "perplexity" not in lenient
    assert lenient["budgets"]
    for entry in lenient["budgets"]:
        assert lenient["loss_of"] == "answers" and 0 <= entry["loss"] <= 0.1 and entry["agreement"] <= 1


def test_a_mixture_leaves_out_experts(tmp_path: Path) -> None:
    """That changes how likely a text is, and so it is measured, with all in memory too; where the bundle has nothing
    to leave out for so little, nothing is."""
    shape = {"model_type": "mixtral", "size": 0.3, "vocab_size": 258, "hidden_size": 64, "intermediate_size": 64,
             "num_local_experts": 6, "num_experts_per_tok": 3, "max_position_embeddings": 512}
    folder = give_tokenizer(write_model(tmp_path / "model", **shape))
    (folder / "tokenizer_config.json").write_text("{}")
    convert(str(folder), tmp_path / "made.edge", "q4", calibrate=False)
    bundle = str(change_header(tmp_path / "made.edge", tmp_path / "m.edge",
                               lambda header: header["quantization"].update(expert_loss=[[0.32, 0.03, 2.0, 0.5]])))
    (questions := tmp_path / "q.jsonl").write_text(json.dumps(
        {"question": "The capital of France is", "choices": ["Paris", "a fish"], "answer": 0}))
    (prompts := tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Say yes.", "answer": "Yes"}))
    what = What({"prose": shipped_texts()["prose"]}, str(questions), str(prompts), 64, 128, 8, 1)
    modes = [Mode("exact", bundle), Mode("max-loss 1 %", bundle, max_loss=0.01),
             Mode("max-loss 5 %", bundle, max_loss=0.05)]
    found = measure_modes(modes, [400 * MIB], what, {"threads": 1})
    exact, nothing, lossy = found["modes"]
    assert exact["loss"] == 0 and not nothing["budgets"] and "loss" not in nothing
    assert lossy["loss_of"] == "texts" and lossy["loss"] != 0 and lossy["perplexity"] != exact["perplexity"]
    assert lossy["budgets"][0]["loss"] == lossy["loss"] and lossy["budgets"][0]["tok_s"] > 0


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    what = What({"t": "x" * 100}, SHIPPED, SHIPPED, 64, None, 8, 1)
    with pytest.raises(EdgertError, match=r"none\.edge: .*no such file"):
        measure_modes([Mode("exact", str(tmp_path / "none.edge"))], [], what, {})


def test_the_front() -> None:
    from edgert.measuring.modes import _mark
    modes = [{"name": name, "budgets": [at(1, loss, speed)]} for name, loss, speed in (
        ("exact", 0.0, 10.0), ("fast", 0.1, 20.0), ("slower, worse", 0.2, 19.0), ("as fast, worse", 0.15, 20.0),
        ("unknown", None, 99.0))]
    _mark(modes)
    assert [m["name"] for m in modes if m["budgets"][0]["pareto"]] == ["exact", "fast"]


def test_plots(tmp_path: Path) -> None:
    modes = [{"name": "exact", "budgets": [at(1, 0.0, 10.0), at(2, 0.0, 20.0)]},
             {"name": "fast", "budgets": [at(1, 0.1, 30.0)]}, {"name": "same", "budgets": [at(1, 0.1, 30.0)]}]
    modes[0]["budgets"][0]["pareto"] = modes[1]["budgets"][0]["pareto"] = True
    plot = scatter(modes)
    assert "1 MiB, tokens/s" in plot and "2 MiB, tokens/s" in plot and "10.0 %" in plot
    lines = plot.splitlines()
    assert next(line for line in lines if "B" in line and "┤" in line).endswith("B  Bc")  # the highest, at the right
    assert letters_of(modes) == {"exact": "A", "fast": "B", "same": "C"}
    assert [budget for budget, _ in by_budget(modes)] == [MIB, 2 * MIB]
    picture(str(tmp_path / "p.png"), "m.edge", modes)
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_percent() -> None:
    assert [percent(share) for share in (None, float("nan"), 0.0123, -1e-9)] == ["–", "–", "1.2 %", "0.0 %"]


def test_shipped_texts_fill_windows() -> None:
    """Of any tokenizer that makes no more than 6 characters a token of them."""
    for text in shipped_texts().values():
        assert len(windows(list(text)[::6], 256, None)) >= 2  # type: ignore[arg-type]
