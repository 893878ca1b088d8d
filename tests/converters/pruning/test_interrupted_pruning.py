"""Pruning that was interrupted goes on from what it kept, and the bundle has the same bytes."""

from pathlib import Path

import pytest
from tiny_model import write_model

from edgert.converters import convert as module
from edgert.converters.calibration_text import shipped_windows
from edgert.converters.convert import convert
from edgert.converters.pruning import weights
from edgert.errors import BundleError

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 300,
         "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def _kept_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_S", 0)
    monkeypatch.setattr(weights, "KEEP_S", 0)
    monkeypatch.setattr(module, "shipped_windows", lambda source: shipped_windows(source)[:2])  # enough to go wrong


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", **SHAPE)  # type: ignore[arg-type]


def stopped_after(parts: int):  # type: ignore[no-untyped-def]
    seen = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal seen
        assert 0 <= done <= total
        seen += 1
        if seen > parts:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("request_text", ["wanda:50%", "sparsegpt:50%:2:4", "magnitude:50%"])
def test_at_every_part(model: Path, tmp_path: Path, request_text: str) -> None:
    seen: list[str] = []
    convert(str(model), tmp_path / "whole.edge", "q4", lambda what, *_: seen.append(what), prune=request_text)
    whole, out = (tmp_path / "whole.edge").read_bytes(), tmp_path / "m.edge"
    went_on = 0
    for after in range(2, len(seen) - 1, max(len(seen) // 7, 1)):
        with pytest.raises(KeyboardInterrupt):
            convert(str(model), out, "q4", stopped_after(after), prune=request_text)
        said: list[str] = []
        convert(str(model), out, "q4", prune=request_text, say=said.append)
        assert out.read_bytes() == whole
        assert [path.name for path in tmp_path.glob("m.edge*")] == ["m.edge"]
        went_on += any("has pruned" in sentence for sentence in said)
        out.unlink()
    assert went_on > 2


def test_again_and_again(model: Path, tmp_path: Path) -> None:
    """Interrupted after every few parts, it comes to an end."""
    convert(str(model), tmp_path / "whole.edge", prune="wanda:50%")
    for _ in range(40):
        try:
            convert(str(model), tmp_path / "m.edge", progress=stopped_after(40), prune="wanda:50%")
            break
        except KeyboardInterrupt:
            pass
    assert (tmp_path / "m.edge").read_bytes() == (tmp_path / "whole.edge").read_bytes()


@pytest.mark.parametrize("change", ["request", "damage", "none"])
def test_what_has_changed_starts_again(model: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "m.edge"
    with pytest.raises(KeyboardInterrupt):
        convert(str(model), out, progress=stopped_after(20), prune="wanda:50%")
    left = tmp_path / "m.edge.part.pruned"
    assert left.exists()
    if change == "damage":
        data = bytearray(left.read_bytes())
        data[40] ^= 1
        left.write_bytes(data)
    then = {"request": "wanda:60%", "damage": "wanda:50%", "none": None}[change]
    said: list[str] = []
    convert(str(model), out, prune=then, say=said.append)
    convert(str(model), tmp_path / "whole.edge", prune=then)
    assert not said and out.read_bytes() == (tmp_path / "whole.edge").read_bytes()
    assert [path.name for path in tmp_path.glob("m.edge*")] == ["m.edge"]


@pytest.mark.parametrize("prune", ["wanda:50%", "auto:50%"])
def test_another_conversion_at_the_same_time(model: Path, tmp_path: Path, prune: str) -> None:
    """Is refused, whatever it would do, and the first goes on."""
    refused: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if len(refused) < 2 and what.startswith(("pruning", "searching")):
            for other in (None, prune):
                with pytest.raises(BundleError, match="another conversion is writing it") as error:
                    convert(str(model), tmp_path / "m.edge", prune=other)
                refused.append(str(error.value))
            if what.startswith("searching"):
                raise KeyboardInterrupt

    if prune.startswith("auto"):
        with pytest.raises(KeyboardInterrupt):
            convert(str(model), tmp_path / "m.edge", progress=progress, prune=prune)
        assert [path.name for path in tmp_path.glob("m.edge*")] == ["m.edge.part.search.journal"]
    else:
        convert(str(model), tmp_path / "m.edge", progress=progress, prune=prune)
        assert [path.name for path in tmp_path.glob("m.edge*")] == ["m.edge"]
    assert len(refused) == 2


def test_one_that_was_killed_as_it_began(model: Path, tmp_path: Path) -> None:
    """What it had of a file is no file of the user's."""
    (left := tmp_path / "m.edge.part.pruned").write_bytes(b"EDGERT PR")
    convert(str(model), tmp_path / "m.edge")
    assert not left.exists()
    left.touch()
    convert(str(model), tmp_path / "m.edge", prune="magnitude:50%")
    assert [path.name for path in tmp_path.glob("m.edge*")] == ["m.edge"]


def test_a_file_of_the_users_stays(model: Path, tmp_path: Path) -> None:
    (own := tmp_path / "m.edge.part.pruned").write_text("mine")
    with pytest.raises(BundleError, match="is in the way"):
        convert(str(model), tmp_path / "m.edge", prune="wanda:50%")
    convert(str(model), tmp_path / "m.edge")
    assert own.read_text() == "mine"
