"""What a user may ask for, and one clear sentence for everything else; what is asked for is done, and on record."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_model import write_model

from edgert.bundle import Bundle
from edgert.bundle.contents import contents
from edgert.commands import inspect
from edgert.converters import command
from edgert.converters.convert import convert
from edgert.converters.pruning.request import requested
from edgert.errors import SourceError

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300,
                         "num_attention_heads": 4}


@pytest.mark.parametrize("text", ["wanda:50%", "magnitude:30%:unstructured", "dsnot:50%:2:4", "sparsegpt:62.5%:3:8",
                                  "wanda:70%:16x4", "auto:30%", "auto:30%:16x1", "neurons:25%", "layers:10%"])
def test_requests(text: str) -> None:
    assert str(requested(text)) == text.removesuffix(":unstructured")


@pytest.mark.parametrize(("text", "sentence"), [
    ("wander:50%", "'wander' is not a method of pruning; known: magnitude, wanda, dsnot, sparsegpt, auto, neurons, "
                   "layers"),
    ("", "'' is not a method"),
    ("wanda", "names no amount; write METHOD:AMOUNT[:PATTERN], such as wanda:50%"),
    ("wanda:0.5", "names no amount"), ("wanda:-5%", "names no amount"), ("wanda:2:4", "names no amount"),
    ("wanda:0%", "changes nothing"), ("wanda:100%", "leaves nothing"), ("neurons:100%", "leaves nothing"),
    ("wanda:150%", "leaves nothing"),
    ("wanda:30%:2:4", "2:4 prunes 50%, not 30%; write wanda:50%:2:4"),
    ("wanda:50%:4:4", "pattern '4:4' is not known"), ("wanda:50%:0:4", "is not known"),
    ("wanda:50%:8x1", "pattern '8x1' is not known"), ("wanda:50%:16x3", "is not known"),
    ("wanda:50%:squares", "known: unstructured, N:M such as 2:4"),
    ("auto:50%:2:4", "nothing for auto to find"),
    ("dsnot:50%:16x1", "exchanges single weights"),
    ("neurons:50%:2:4", "pruned whole: write neurons:50%, without a pattern")])
def test_no_requests(text: str, sentence: str) -> None:
    with pytest.raises(SourceError) as raised:
        requested(text)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(("text", "sentence"), [
    ("wanda:60%:2:5", "2:5 does not suit model.layers.0.self_attn.q_proj.weight: its rows of 64 weights do not divide "
                      "into groups of 5; choose another pattern"),
    ("magnitude:1%", "not one weight of a row would be pruned; choose another amount"),
    ("wanda:40%:16x32", "not one block of a row of blocks would be pruned")])
def test_not_for_this_model(tmp_path: Path, text: str, sentence: str) -> None:
    model = write_model(tmp_path / "model", **SHAPE)
    with pytest.raises(SourceError) as raised:
        convert(str(model), tmp_path / "m.edge", prune=text)
    assert sentence in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("shape", "sentence"), [
    ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}, "a mixture of experts is not pruned"),
    ({"model_type": "opt", "max_position_embeddings": 300, "num_attention_heads": 2}, r"\(ReLU\) is not pruned")])
def test_models_that_are_not_pruned(tmp_path: Path, shape: dict[str, Any], sentence: str) -> None:
    model = write_model(tmp_path / "model", **{**SHAPE, **shape})
    with pytest.raises(SourceError, match=sentence):
        convert(str(model), tmp_path / "m.edge", prune="wanda:50%")


def test_a_text_is_needed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", **SHAPE)
    with pytest.raises(SourceError, match="wanda needs a text"):
        convert(str(model), tmp_path / "m.edge", prune="wanda:50%", calibrate=False)
    convert(str(model), tmp_path / "m.edge", prune="magnitude:50%", calibrate=False)


@pytest.mark.parametrize("text", ["wanda:50%", "sparsegpt:50%:2:4", "magnitude:25%:16x1"])
def test_the_command(tmp_path: Path, text: str) -> None:
    """The bundle says how it was pruned, and how many weights of each kind are 0."""
    model, out = write_model(tmp_path / "model", **SHAPE), str(tmp_path / "m.edge")
    said = CliRunner().invoke(command.command, [str(model), out, "--prune", text, "--preset", "f16"])
    assert said.exit_code == 0, said.output
    with Bundle(out) as bundle:
        record, kinds = bundle.header.quantization["pruning"], contents(bundle.header)
    method, amount = text.split(":")[0], int(text.split(":")[1][:-1]) / 100
    assert record["method"] == method and record["amount"] == amount
    for kind in kinds:
        pruned = kind.name in ("attention", "feed-forward")
        assert kind.zeros / max(kind.weights, 1) == pytest.approx(amount if pruned else 0, abs=0.02)
    shown = CliRunner().invoke(inspect.command, [out]).output
    assert f"pruned           {method}, {record['pattern']}" in shown
    line = next(line for line in shown.splitlines() if line.startswith("feed-forward"))
    assert line.endswith(f"{amount:.1%}") or abs(float(line.split()[-1][:-1]) / 100 - amount) < 0.02
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.edge", "model"]
