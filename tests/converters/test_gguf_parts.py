"""GGUF models in several files, as the gguf library writes them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_hub import COMMIT, FakeHub, run
from random_gguf import write

from edgert.bundle import Bundle
from edgert.converters.convert import convert
from edgert.converters.gguf_source import open_gguf
from edgert.converters.hub_choice import best_gguf
from edgert.errors import DownloadError, SourceError


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first of three files."""
    path = write(tmp_path / "m.gguf", tensors_in_a_file=4)
    assert path.name == "m-00001-of-00003.gguf"
    return path


def second(first: Path) -> Path:
    return first.with_name("m-00002-of-00003.gguf")


def test_a_model_in_parts_is_the_model(tmp_path: Path, first: Path) -> None:
    whole, parts = open_gguf(write(tmp_path / "whole.gguf")), open_gguf(first)
    assert parts.config == whole.config and parts.tokenizer_json == whole.tokenizer_json
    assert list(parts.tensors) == list(whole.tensors) and len(parts.files) == 3
    for name, tensor in parts.tensors.items():
        rows = tensor.shape[0]
        np.testing.assert_array_equal(tensor.read(0, rows), whole.tensors[name].read(0, rows))
    assert sorted(parts.provenance["files"]) == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert parts.provenance["source"] == first.name


def test_any_part_stands_for_all(tmp_path: Path, first: Path) -> None:
    for number, part in enumerate((first, second(first))):
        convert(str(part), tmp_path / f"{number}.edge", calibrate=False)
    assert (tmp_path / "0.edge").read_bytes() == (tmp_path / "1.edge").read_bytes()
    with Bundle(tmp_path / "0.edge") as bundle:
        assert bundle.verify() == []


def refused(path: Path) -> str:
    with pytest.raises(SourceError) as error:
        open_gguf(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_part_that_is_missing(first: Path) -> None:
    second(first).unlink()
    assert "m-00002-of-00003.gguf: there is no such file, part 2 of 3 of the model" in refused(first)


def test_a_part_of_another_name(first: Path) -> None:
    alone = first.rename(first.with_name("model.gguf"))
    assert "is one of 3 parts of a model, which cannot be found: give them the names that they had" in refused(alone)


def test_a_part_in_the_place_of_another(first: Path) -> None:
    shutil.copy(second(first), first.with_name("m-00003-of-00003.gguf"))
    assert "is not part 3 of 3, as its name says: its header says 2 of 3" in refused(first)


def test_a_part_of_another_model(tmp_path: Path, first: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "m.gguf", tensors_in_a_file=5)
    shutil.copy(second(other), second(first))
    assert "these are parts of two models" in refused(first)


def test_parts_on_the_hub(tmp_path: Path, first: Path) -> None:
    """Named or chosen, all of them are fetched."""
    code = "from edgert.converters.open_source import open_source\nprint(len(open_source({spec!r}).files))"
    with FakeHub({path.name: path.read_bytes() for path in first.parent.glob("m-*.gguf")}) as hub:
        for spec in (f"hf:org/name:{first.name}", f"hf:org/name@{COMMIT}"):
            done = run(code.format(spec=spec), hub.environment(tmp_path / "cache"))
            assert done.stdout == "3\n", done.stderr


def test_the_choice_counts_all_parts() -> None:
    sizes = {"a.Q4_K_M-00001-of-00002.gguf": 60, "a.Q4_K_M-00002-of-00002.gguf": 60, "a.Q2_K.gguf": 50,
             "b.Q4_0-00001-of-00002.gguf": 1}
    assert best_gguf("hf:a/b", sizes, 300) == "a.Q4_K_M-00001-of-00002.gguf"
    assert best_gguf("hf:a/b", sizes, 200) == "a.Q2_K.gguf"
    with pytest.raises(DownloadError, match="its smallest file"):
        best_gguf("hf:a/b", sizes, 50)
