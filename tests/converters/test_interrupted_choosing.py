"""What bits cost, measured for presets q3 and q2 and for --size: an interruption loses little of it, and changes
nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_model import write_model

from edgert.converters import choosing
from edgert.converters import convert as module
from edgert.converters.command import command
from edgert.converters.convert import convert

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 40,
         "max_position_embeddings": 128}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_conversions: None) -> Path:
    monkeypatch.setattr(choosing, "KEEP_S", 0)
    monkeypatch.setattr(module, "KEEP_S", 0)
    return write_model(tmp_path / "model", size=0.3, **SHAPE)  # type: ignore[arg-type]


def stopped_after(parts: int, seen: list[tuple[str, int]]) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        seen.append((what, done))
        if len(seen) > parts:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("calibrate", [True, False])
def test_at_every_part(model: Path, tmp_path: Path, calibrate: bool) -> None:
    seen: list[tuple[str, int]] = []
    convert(str(model), tmp_path / "whole.edge", "q3", stopped_after(10 ** 6, seen), calibrate=calibrate)
    whole, out = (tmp_path / "whole.edge").read_bytes(), tmp_path / "m.edge"
    parts, gone_on = sum(what == "what bits cost" for what, _ in seen), 0
    for after in range(1, len(seen) - 1, 7 if calibrate else 4):
        with pytest.raises(KeyboardInterrupt):
            convert(str(model), out, "q3", stopped_after(after, []), calibrate=calibrate)
        again: list[tuple[str, int]] = []
        said: list[str] = []
        convert(str(model), out, "q3", stopped_after(10 ** 6, again), calibrate=calibrate, say=said.append)
        assert out.read_bytes() == whole
        assert sorted(path.name for path in tmp_path.glob("m.edge*")) == ["m.edge"]
        measured = [done for what, done in again if what == "what bits cost"]
        if after >= parts:
            assert not measured
        gone_on += bool(measured) and measured[0] > seen[0][1]
        if len(measured) < parts:
            assert any("has measured" in sentence for sentence in said)
        out.unlink()
    assert gone_on > 1


def test_another_size_needs_no_second_measuring(model: Path, tmp_path: Path) -> None:
    """Another text to calibrate with does."""
    convert(str(model), tmp_path / "q3.edge", "q3")
    size = (tmp_path / "q3.edge").stat().st_size
    (text := tmp_path / "t.txt").write_text("abcdefgh" * 500)
    for texts, preset, of_size in (([], "q4", size), ([text], "q3", None)):
        convert(str(model), tmp_path / "whole.edge", preset, size=of_size, texts=texts)
        seen: list[tuple[str, int]] = []

        def progress(what: str, done: int, total: int) -> None:
            if what != "what bits cost":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(str(model), tmp_path / "m.edge", "q3", progress)
        assert (tmp_path / "m.edge.part.bits.journal").exists()
        convert(str(model), tmp_path / "m.edge", preset, stopped_after(10 ** 6, seen), size=of_size, texts=texts)
        assert any(what == "what bits cost" for what, _ in seen) == bool(texts)
        assert (tmp_path / "m.edge").read_bytes() == (tmp_path / "whole.edge").read_bytes()


def test_what_is_told_and_left(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says that something is kept; a conversion without measuring removes it."""
    keep, kept = choosing._keep, []

    def kept_once(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        kept.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(choosing, "_keep", kept_once)
        found = CliRunner().invoke(command, [str(model), str(tmp_path / "m.edge"), "--preset", "q2"])
    assert kept and re.search(r"what is done is kept beside it", found.output + found.stderr)
    assert sorted(path.name for path in tmp_path.glob("m.edge*")) == ["m.edge.part.bits.journal"]
    convert(str(model), tmp_path / "m.edge")
    assert sorted(path.name for path in tmp_path.glob("m.edge*")) == ["m.edge"]
