"""The search for amounts: it keeps the sum, finds what a layer can spare, and goes on where it was interrupted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import write_model

from edgert.bundle import Bundle
from edgert.bundle.journal import Journal
from edgert.converters import convert as conversion
from edgert.converters.calibration_text import shipped_windows
from edgert.converters.convert import convert
from edgert.converters.open_source import open_source
from edgert.converters.pruning import search as module
from edgert.converters.pruning.judging import Judge, groups_of
from edgert.converters.pruning.patterns import Blocks, Pattern, Unstructured
from edgert.converters.pruning.search import Search, by_name, losses_here, seconds_of
from edgert.converters.source import Source
from edgert.errors import SourceError

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 300,
         "num_attention_heads": 4, "max_position_embeddings": 256}


UNSTRUCTURED = Unstructured()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A model whose second layer adds nearly nothing: all of it can go."""
    model = write_model(tmp_path / "model", size=0.3, **SHAPE)  # type: ignore[arg-type]
    weights = load_file(model / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.1.{name}.weight"] *= np.float32(1e-3)
    save_file(weights, model / "model.safetensors")
    return open_source(str(model))


def judge_of(source: Source, pattern: Pattern = UNSTRUCTURED) -> Judge:
    windows = shipped_windows(source)
    assert windows is not None
    return Judge.of(source, pattern, windows[:2, :48])


def search_of(judge: Judge, folder: Path) -> Search:
    return Search(judge, 0.5, None, Journal(folder / "m.edge.part.search", "key"), losses_here(judge))


def test_losses(source: Source) -> None:
    """Nothing pruned loses nothing; the loss is the divergence of whole distributions, computed here plainly."""
    judge = judge_of(source)
    assert judge.loss({}) == pytest.approx(0, abs=1e-6)
    amounts = by_name(groups_of(source), np.full(6, 0.5))
    head = source.tensors["model.embed_tokens.weight"].read(0, 300).astype(np.float64)
    windows = judge.windows
    assert judge.loss(amounts) == pytest.approx(np.mean([judge.loss(amounts, 0), judge.loss(amounts, 1)]), rel=1e-5)
    pruned = Judge.of(_pruned(source, judge, amounts), Unstructured(), windows)
    logs = [(x @ head.T) - np.log(np.exp(x @ head.T).sum(1, keepdims=True)) for x in (judge.hidden, pruned.hidden)]
    expected = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean()
    assert judge.loss(amounts) == pytest.approx(expected, rel=1e-4)


def _pruned(source: Source, judge: Judge, amounts: dict[str, float]) -> Source:
    from dataclasses import replace

    class Fixed:
        def __init__(self, values: np.ndarray) -> None:
            self.values, self.shape, self.type_name = values, values.shape, "F32"

        def read(self, start: int, stop: int) -> np.ndarray:
            return self.values[start:stop]

    tensors: dict[str, Any] = dict(source.tensors)
    for name, amount in amounts.items():
        weights = source.tensors[name].read(0, source.tensors[name].shape[0])
        order = np.argsort(np.abs(weights) * judge.norms[name], 1, kind="stable")
        weights = weights.copy()
        np.put_along_axis(weights, order[:, :int(weights.shape[1] * amount)], 0, 1)
        tensors[name] = Fixed(weights)
    return replace(source, tensors=tensors)


@pytest.mark.parametrize("pattern", [Unstructured(), Blocks(4)])
def test_it_finds_what_can_be_spared(source: Source, tmp_path: Path, pattern: Pattern,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GENERATIONS", 12)
    search = search_of(judge_of(source, pattern), tmp_path)
    found = search.run(lambda what, done, total: None)
    weights = np.array([group.weights for group in search.groups])
    assert found @ weights == pytest.approx(0.5 * weights.sum(), rel=1e-6) and (found >= 0).all() and (found < 1).all()
    assert search.loss < 0.9 * search.uniform
    layers = np.array([group.layer for group in search.groups])
    assert found[layers == 1].mean() > 0.5 + 0.05


def test_interrupted_it_goes_on(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any generation; the amounts are those of one go."""
    monkeypatch.setattr(module, "GENERATIONS", 5)
    (tmp_path / "whole").mkdir()
    judge = judge_of(source)
    expected = search_of(judge, tmp_path / "whole").run(lambda what, done, total: None)
    for generation in (0, 3):
        def stop(what: str, done: int, total: int, at: int = generation) -> None:
            if done == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search_of(judge, tmp_path).run(stop)
        again, seen = search_of(judge, tmp_path), list[int]()
        assert (again.run(lambda what, done, total, seen=seen: seen.append(done)) == expected).all()  # type: ignore[misc]
        assert seen[0] == generation
        (tmp_path / "m.edge.part.search.journal").unlink()


def test_the_time_is_kept(source: Source, tmp_path: Path) -> None:
    """What an interrupted search has taken counts."""
    judge = judge_of(source)
    search = Search(judge, 0.5, 1e-3, Journal(tmp_path / "m.edge.part.search", "key"), losses_here(judge))
    assert search.run(lambda *_: None) is search.best and search.generation == 0
    again = Search(judge, 0.5, 1e-3, Journal(tmp_path / "m.edge.part.search", "key"), losses_here(judge))
    assert (again.run(lambda *_: None) == search.best).all() and again.generation == 0


def test_a_conversion(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while it searches and while it prunes, it makes the same bytes; the amounts are on record."""
    monkeypatch.setattr(module, "GENERATIONS", 4)
    monkeypatch.setattr(conversion, "shipped_windows", lambda source: shipped_windows(source)[:2])
    said: list[str] = []
    convert(str(tmp_path / "model"), tmp_path / "whole.edge", "f16", prune="auto:50%", say=said.append)
    assert len(said) == 1 and "nats are lost for a token" in said[0]
    for stop_at in ("searching", "pruning", "model.norm"):
        def progress(what: str, done: int, total: int, at: str = stop_at) -> None:
            if what.startswith(at) and done > 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(str(tmp_path / "model"), tmp_path / "m.edge", "f16", progress, prune="auto:50%")
        convert(str(tmp_path / "model"), tmp_path / "m.edge", "f16", prune="auto:50%")
        assert (tmp_path / "m.edge").read_bytes() == (tmp_path / "whole.edge").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.edge", "model", "whole.edge"]
    with Bundle(tmp_path / "m.edge") as bundle:
        record = bundle.header.quantization["pruning"]
    assert {kind: len(of) for kind, of in record["amounts"].items()} == {"attention": 3, "feed-forward": 3}
    zeros = sum(record["zeros"].values()) / sum(group.weights for group in groups_of(source))
    assert zeros == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("text", "seconds"), [("20m", 1200), ("90s", 90), ("1.5h", 5400)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["20", "0m", "m", "-5m", "5 days", ""])
def test_no_times(text: str) -> None:
    with pytest.raises(SourceError, match=r"write it like 20m, 90s or 1\.5h"):
        seconds_of(text)


def test_a_time_for_nothing(tmp_path: Path) -> None:
    for prune in (None, "wanda:50%"):
        with pytest.raises(SourceError, match="--time says how long"):
            convert("model", tmp_path / "m.edge", prune=prune, search_time="20m")
