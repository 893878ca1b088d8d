"""Folders as sentence-transformers writes them: pooling, normalization, lengths, prompts; against lines of NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_onnx import TABLE, WORDS, modules, write_folder

import edgert
from edgert import Embedder, EmbeddingError
from edgert.embeddings.computing import Computing
from edgert.embeddings.recipe import MOST_TOKENS, read_recipe

TEXTS = ["a b c d e", "f", "h g", ""]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(text: str) -> np.ndarray:
    return TABLE[[WORDS.index("[CLS]"), *(WORDS.index(word) for word in text.split()), WORDS.index("[SEP]")]]


def normalized(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def weighted(vectors: np.ndarray) -> np.ndarray:
    weights = np.arange(1, len(vectors) + 1)
    return (weights @ vectors) / weights.sum()


@pytest.mark.parametrize(("pooling", "expected"), [
    ({"pooling_mode_mean_tokens": True}, lambda v: v.mean(0)),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda v: v[0]),
    ({"pooling_mode_max_tokens": True}, lambda v: v.max(0)),
    ({"pooling_mode_lasttoken": True}, lambda v: v[-1]),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda v: v.sum(0) / len(v) ** 0.5),
    ({"pooling_mode_weightedmean_tokens": True}, weighted),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, lambda v: np.concatenate([v[0], v.mean(0)])),
    ({"pooling_mode": "max"}, lambda v: v.max(0)),
], ids=["mean", "cls", "max", "last", "sqrt", "weighted", "two", "newer"])
def test_pooling(tmp_path: Path, pooling: dict[str, Any], expected: Any) -> None:
    folder = write_folder(tmp_path / "model", modules=modules("Transformer", "Pooling"),
                          **{"1_Pooling__config": pooling})
    found = Computing(read_recipe(folder), folder / "model.onnx", 1).compute(TEXTS)
    assert found.vectors.dtype == np.float32 and found.tokens == [7, 3, 4, 2]
    np.testing.assert_allclose(found.vectors, [expected(rows(text)) for text in TEXTS], rtol=1e-5, atol=1e-6)


def test_a_bare_folder(tmp_path: Path) -> None:
    """The mean, normalized, whatever the file is called."""
    folder = write_folder(tmp_path / "model", onnx="onnx/model_quantized.onnx",
                          inputs=("input_ids", "attention_mask", "token_type_ids", "position_ids"))
    with Embedder(folder, threads=1) as embedder:
        assert embedder.name == "model"
        np.testing.assert_allclose(embedder.embed(TEXTS), [normalized(rows(text).mean(0)) for text in TEXTS], rtol=1e-5)
    assert read_recipe(folder / "onnx/model_quantized.onnx").name == "model"


def test_lengths_prompts_and_case(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "model", modules=modules("Transformer", "Pooling", "Normalize"),
        sentence_bert_config={"max_seq_length": 8, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "h ", "passage": ""}, "default_prompt_name": "query"})
    with Embedder(folder, threads=1) as embedder:
        assert embedder.max_tokens == 8
        found = embedder.embed(["A b c d e f g", "B"])
        np.testing.assert_allclose(found, [normalized(rows(t).mean(0)) for t in ("h a b c d e", "h b")], rtol=1e-5)
        plain = embedder.embed(["B"], prompt="passage", dimensions=4)
        np.testing.assert_allclose(plain, [normalized(normalized(rows("b").mean(0))[:4])], rtol=1e-5)
        pieces = list(embedder.pieces(["a b c d e f g", "b"]))
        assert sum(piece.cut for piece in pieces) == 1 and sum(piece.tokens for piece in pieces) == 8 + 4
        with pytest.raises(EmbeddingError, match="has no prompt 'passages'; it has 'query', 'passage'"):
            embedder.embed(["a"], prompt="passages")


@pytest.mark.parametrize(("files", "most"), [
    ({}, 512),
    ({"tokenizer_config": {"model_max_length": 300}, "config": {"max_position_embeddings": 512}}, 300),
    ({"tokenizer_config": {"model_max_length": 1e30}, "config": {"max_position_embeddings": 128}}, 128),
    ({"config": {"model_type": "xlm-roberta", "max_position_embeddings": 514}}, 512),
    ({"config": {"max_position_embeddings": 8192}}, MOST_TOKENS),
])
def test_length_of_a_folder_that_does_not_say(tmp_path: Path, files: dict[str, Any], most: int) -> None:
    assert read_recipe(write_folder(tmp_path / "model", **files)).max_tokens == most


def refused(path: Path) -> str:
    with pytest.raises(EmbeddingError) as error:
        Embedder(path, threads=1)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no ONNX model" in refused(tmp_path / "empty")
    dense = write_folder(tmp_path / "dense", modules=modules("Transformer", "Pooling", "Dense"))
    assert "a module Dense, which is not supported" in refused(dense)
    assert "the pooling 'middle' is not supported" in refused(
        write_folder(tmp_path / "middle", **{"1_Pooling__config": {"pooling_mode": "middle"}}))
    (tmp_path / "dense" / "modules.json").write_text("{")
    assert "modules.json: cannot be read" in refused(dense)
    several = write_folder(tmp_path / "several", onnx="a.onnx")
    write_folder(several, onnx="b.onnx")
    assert "several ONNX models (a.onnx, b.onnx); give the path of one" in refused(several)
    assert "wants an input pixel_values" in refused(
        write_folder(tmp_path / "picture", inputs=("input_ids", "pixel_values")))
    broken = write_folder(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"\x08\x08nothing")
    assert "onnxruntime cannot load it" in refused(broken)
    (write_folder(tmp_path / "words") / "tokenizer.json").write_text('{"model": 5}')
    assert "is not a tokenizer" in refused(tmp_path / "words")
    (tmp_path / "words" / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(tmp_path / "words")


def test_prepared_once_and_anew_when_it_changes(tmp_path: Path, cache: Path) -> None:
    folder, begun = write_folder(tmp_path / "model"), []
    for _ in range(2):
        with Embedder(folder, threads=1, beginning=lambda: begun.append(1)) as embedder:
            before = embedder.embed(["a"])
    assert len(begun) == 1
    table = TABLE.copy()
    TABLE[:] = -table
    try:
        write_folder(folder)
    finally:
        TABLE[:] = table
    with Embedder(folder, threads=1, beginning=lambda: begun.append(1)) as embedder:
        np.testing.assert_array_equal(embedder.embed(["a"]), -before)
    assert len(begun) == 2
    assert len([path for path in (cache / "embeddings").iterdir() if path.is_dir()]) == 1, "the old one has gone"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "file"))
    assert "EDGERT_CACHE names another folder" in refused(write_folder(tmp_path / "model"))


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused(write_folder(tmp_path / "model")) == "embeddings need onnxruntime: pip install 'edgert[embeddings]'"


def test_texts_that_are_refused(tmp_path: Path) -> None:
    with edgert.Embedder(write_folder(tmp_path / "model"), threads=1) as embedder:
        assert embedder.embed([]).shape == (0, 16)
        for texts, why in (("a", "give a list of texts"), (["a", 3], "text 1 is int"), (["a", "\ud800"], "surrogate")):
            with pytest.raises(EmbeddingError, match=why):
                embedder.embed(texts)  # type: ignore[arg-type]
        with pytest.raises(EmbeddingError, match="dimensions is 17; vectors of model have 16"):
            embedder.embed(["a"], dimensions=17)
