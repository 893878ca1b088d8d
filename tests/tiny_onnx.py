"""Tiny models for embeddings: a table of vectors, and a tokenizer of a few words; an ONNX file is written by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
TABLE = np.random.default_rng(5).standard_normal((len(WORDS), 16)).astype(np.float32)
"""The vector of each token, whatever stands around it."""


def write_folder(folder: Path, *, onnx: str = "model.onnx", inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
                 **files: Any) -> Path:
    """A folder with such a model. files: further JSON files, by their names with _ for / and without the ending."""
    (folder / onnx).parent.mkdir(parents=True, exist_ok=True)
    (folder / onnx).write_bytes(_model(inputs))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))
    return folder


def modules(*kinds: str) -> list[dict[str, Any]]:
    """What modules.json has."""
    paths = {"Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return [{"idx": index, "name": str(index), "path": paths.get(kind, ""),
             "type": f"sentence_transformers.models.{kind}"} for index, kind in enumerate(kinds)]


def _model(inputs: tuple[str, ...]) -> bytes:
    """last_hidden_state = the rows of TABLE that input_ids names. What the numbers are is in onnx.proto3."""
    table = _field(1, TABLE.shape[0]) + _field(1, TABLE.shape[1]) + _field(2, 1) + _field(8, "table") + _field(
        9, TABLE.tobytes())
    node = _field(1, "table") + _field(1, "input_ids") + _field(2, "last_hidden_state") + _field(4, "Gather")
    graph = _field(1, node) + _field(2, "tiny") + _field(5, table)
    for name in inputs:
        graph += _field(11, _value(name, 7, "texts", "tokens"))
    graph += _field(12, _value("last_hidden_state", 1, "texts", "tokens", TABLE.shape[1]))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 17))


def _value(name: str, kind: int, *shape: str | int) -> bytes:
    dimensions = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dimensions)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
