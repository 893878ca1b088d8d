"""Texts to calibrate with: which windows of tokens are made of them, and which are refused."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from edgert.bundle import Bundle
from edgert.converters.calibration_text import MAX_WINDOWS, WINDOW, shipped_windows, windows_of
from edgert.converters.command import command
from edgert.converters.convert import convert
from edgert.converters.open_source import open_source
from edgert.converters.source import Source
from edgert.errors import SourceError

MODEL = Path(__file__).parents[1] / "golden" / "models" / "qwen2"
PROSE = "The tide comes in over the sand, and the boats that lay on their sides begin to lift. "


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(str(MODEL))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_what_ships(source: Source) -> None:
    """Whole windows of it, each with BOS in front where the model wants one."""
    assert (made := shipped_windows(source)) is not None
    assert made.shape == (MAX_WINDOWS, WINDOW)
    with_bos = shipped_windows(replace(source, generation={"bos_token_id": 7, "add_bos_token": True}))
    assert with_bos is not None and (with_bos[:, 0] == 7).all() and (with_bos[:, 1:] == made[:, 1:]).all()


def test_windows_are_the_texts_tokens(source: Source, tmp_path: Path) -> None:
    texts = [PROSE * 40, PROSE.upper() * 80]
    paths = [written(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    ids = [Tokenizer.from_str(source.tokenizer_json).encode(text, add_special_tokens=False).ids for text in texts]
    whole = [each[at:at + WINDOW] for each in ids for at in range(0, len(each) - WINDOW + 1, WINDOW)]
    made = windows_of(source, paths).tolist()
    assert len(made) == min(len(whole), MAX_WINDOWS)
    places = [whole.index(window) for window in made]
    assert places == sorted(places) and places[0] == 0 and made[-1] == whole[-1]


def test_a_large_text_is_read_in_places_all_over_it(source: Source, tmp_path: Path) -> None:
    """Wherever that falls into a character."""
    path = written(tmp_path / "long.txt", "".join(f"{n} \u00e4\u20ac\U0001f30a{PROSE}" for n in range(200_000)))
    assert path.stat().st_size > 10 << 20
    tracemalloc.start()
    made = windows_of(source, [path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.shape == (MAX_WINDOWS, WINDOW) and peak < 5 << 20
    assert len(np.unique(made, axis=0)) == MAX_WINDOWS


@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"), (b" \n\t ", "is empty"), (b"too short", "too short to calibrate with"),
    (b"\x80" * 5000, "is not text in UTF-8"), (b"text\0" * 5000, "is not text in UTF-8"),
    (b"\xff\xfe" * 100_000, "is not text in UTF-8"), (None, "cannot be read: No such file or directory")])
def test_what_is_no_text_is_refused_and_nothing_is_written(tmp_path: Path, content: bytes | None, said: str) -> None:
    path, out = tmp_path / "text", tmp_path / "m.edge"
    if content is not None:
        written(path, content)
    with pytest.raises(SourceError, match=said) as raised:
        convert(str(MODEL), out, texts=[path])
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    assert not out.exists()


def test_another_text_makes_another_bundle_which_says_so(tmp_path: Path) -> None:
    text, out = written(tmp_path / "mine.txt", PROSE * 100), tmp_path / "m.edge"
    result = CliRunner().invoke(command, [str(MODEL), str(out), "--calibrate", str(text)])
    assert result.exit_code == 0 and "not used" not in result.output
    convert(str(MODEL), shipped := tmp_path / "shipped.edge")
    with Bundle(out) as mine, Bundle(shipped) as other:
        assert mine.header.provenance["calibration"] == "mine.txt" and "calibration" not in other.header.provenance
        sections = [[bundle.read_section(name) for name in sorted(bundle.header.sections)] for bundle in (mine, other)]
    assert sections[0] != sections[1]


def test_a_text_that_nothing_is_rounded_with(tmp_path: Path) -> None:
    text, out = written(tmp_path / "mine.txt", PROSE * 100), tmp_path / "m.edge"
    arguments = [str(MODEL), str(out), "--calibrate", str(text)]
    result = CliRunner().invoke(command, [*arguments, "--preset", "f32"])
    assert result.exit_code == 0 and "the text was not used" in result.output
    both = CliRunner().invoke(command, [*arguments, "--no-calibrate"])
    assert both.exit_code == 2 and "give one" in both.output
