"""Folders in Hugging Face's layout: config.json, weights in safetensors files, and a tokenizer, as a `Source`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from edgert.errors import SourceError
from edgert.models.families import MODEL_TYPES
from edgert.models.tensors import NORMS

from .bitnet_tensors import check_method, unpacked
from .expert_tensors import with_experts
from .gptoss_tensors import Bytes, unmixed
from .hf_tokenizer import read_json, read_tokenizer
from .reading import family_config, model_tensors, require_finite
from .rows import check_rows
from .source import Grid, Source, SourceTensor
from .source_file import Reading, SourceFile, hashes, unheard

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of weight files that are Python pickles."""

_INDEX = "model.safetensors.index.json"
_TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
          _INDEX)
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER = 100_000_000
"""The safetensors library's own limit."""
_MAX_SHARDS = 1024
_MXFP4, _BITNET = ("gpt_oss", "mxfp4"), "bitnet"
"""The family and the method of one kind of quantized models that is read, and the method of the other."""
_CONSTANTS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
"""What old exports of Llama and GPT-NeoX carry along."""
_TEXT_PREFIXES = {"language_model.": "", "model.language_model.": "model.", "lm_head.": "lm_head."}
"""Of a model's text part in a larger model, up to transformers 4.51 and from then on; and what stands for them."""


@dataclass
class SafetensorsTensor:
    """A `SourceTensor` in a safetensors file."""

    file: SourceFile
    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    """Of its first byte, in the file."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (elements, of a vector) as float32. Raises SourceError."""
        check_rows(start, stop, self.shape[0])
        row = math.prod(self.shape[1:]) * _ITEM_BYTES[self.type_name]
        raw = self.file.read(self.offset + start * row, (stop - start) * row)
        if self.type_name == "F32":
            values = raw.view("<f4")
        elif self.type_name == "F16":
            values = raw.view("<f2").astype(np.float32)
        else:  # BF16 is the upper half of a float32; NumPy does not have it
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return require_finite(values, self.file.path, self.name).reshape(stop - start, *self.shape[1:])

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: these types have no grid."""
        return None


@dataclass
class BytesTensor:
    """A `gptoss_tensors.Bytes` in a safetensors file."""

    file: SourceFile
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, in the file."""

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, uint8. Raises SourceError."""
        check_rows(start, stop, self.shape[0])
        row = math.prod(self.shape[1:])
        return self.file.read(self.offset + start * row, (stop - start) * row).reshape(stop - start, *self.shape[1:])


class ShiftedTensor:
    """A `SourceTensor` with a number added to all of its elements."""

    def __init__(self, tensor: SourceTensor, offset: float) -> None:
        self._tensor, self._offset = tensor, np.float32(offset)
        self.shape, self.type_name = tensor.shape, tensor.type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (elements, of a vector) as float32. Raises SourceError."""
        return self._tensor.read(start, stop) + self._offset

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: what was shifted is on no grid."""
        return None


def open_safetensors(folder: str | Path, *, hashed: bool = True, reading: Reading = unheard) -> Source:
    """The model in a folder of config.json, tokenizer.json, and model.safetensors or its shards and their index.

    Reads the headers, the files once for their hashes (if `hashed`; `reading` is told how far that has come), and no
    tensor before it is asked for. Raises SourceError where something is missing, damaged or hostile, or of a family or
    type that edgert does not read.
    """
    folder = Path(folder)
    files = {name: SourceFile(folder / name) for name in _TEXTS if (folder / name).is_file()}
    weights = _weight_files(folder)
    values = read_json(folder / "config.json")
    quantization = values.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        raise SourceError(f"{folder / 'config.json'}: quantization_config is not an object")
    method = quantization.get("quant_method")
    if quantization and method != _BITNET and (values.get("model_type"), method) != _MXFP4:
        raise SourceError(f"{folder / 'config.json'}: the model is already quantized (quantization_config); "
                          "convert the original, in F32, F16 or BF16")
    config = family_config(folder / "config.json", values.get("model_type"), MODEL_TYPES,
                           lambda family: family.from_hf(values))
    found, quantized = _tensors(folder, weights, files)
    if "text_config" in values:
        found = _text_part(found)
    if config.architecture == "gpt-oss":
        found, quantized = unmixed(found, quantized), {}
    if method == _BITNET:
        try:
            check_method(quantization)
        except ValueError as error:
            raise SourceError(f"{folder / 'config.json'}: {error}") from None
        found, quantized = unpacked(found, quantized, quantization), {}
    if quantized:
        raise SourceError(f"{folder}: tensor {min(quantized)} is of type U8, which edgert does not read; "
                          f"it reads {', '.join(_ITEM_BYTES)}")
    if config.experts:
        found = with_experts(found)
    tensors = model_tensors(folder, config, found, lambda spec: spec.name, by_head=True)
    if config.hf_norm_offset:
        norms = {spec.name for spec in config.tensors() if spec.role in NORMS}
        tensors |= {name: ShiftedTensor(tensors[name], config.hf_norm_offset) for name in norms}
    tokenizer_json, generation, template = read_tokenizer(folder, values, config.vocab_size)
    names = sorted({"config.json", "tokenizer.json", *weights}) if hashed else []
    provenance = {"source": folder.resolve().name, "files": hashes({name: files[name] for name in names}, reading),
                  "type": "safetensors"}
    return Source(config, tensors, tokenizer_json, generation, template, provenance, tuple(files.values()))


def _text_part(found: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Of a model that sees images too what it needs for text, by the names that a model for text has."""
    text = {}
    for name, tensor in found.items():
        for prefix, plain in _TEXT_PREFIXES.items():
            if name.startswith(prefix):
                text[plain + name.removeprefix(prefix)] = tensor
    return text


def _weight_files(folder: Path) -> dict[str, list[str] | None]:
    """The safetensors files by name, each with the tensors that the index says are in it (None: all that are there)."""
    index_path = folder / _INDEX
    if index_path.is_file():
        return _shards(index_path)
    if (folder / "model.safetensors").is_file():
        return {"model.safetensors": None}
    if not folder.is_dir():
        raise SourceError(f"{folder}: there is no such folder")
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise pickle_refused(folder / pickled[0])
    raise SourceError(f"{folder}: has no model.safetensors and no {_INDEX}: "
                      "this is not a model in Hugging Face's layout")


def pickle_refused(path: Path) -> SourceError:
    """The error for a file of pickled weights."""
    return SourceError(f"{path}: is a pickle, and opening a pickle can run any code that is in it, so edgert never "
                       "does: use the model's safetensors or GGUF files instead")


def _shards(index_path: Path) -> dict[str, list[str] | None]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index_path}: has no weight_map")
    shards: dict[str, list[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or any(c in file for c in "/\\:\0"):
            raise SourceError(f"{index_path}: tensor {name} is said to be in {file!r}, "
                              "which is not the name of a safetensors file in this folder")
        names = shards.setdefault(file, [])
        assert names is not None
        names.append(name)
    if len(shards) > _MAX_SHARDS:
        raise SourceError(f"{index_path}: names {len(shards)} files, more than {_MAX_SHARDS}")
    return shards


def _tensors(folder: Path, weights: dict[str, list[str] | None],
             files: dict[str, SourceFile]) -> tuple[dict[str, SourceTensor], dict[str, Bytes]]:
    """The tensors by name, and those of bytes; the files that they are in are added to `files`."""
    tensors: dict[str, SourceTensor] = {}
    quantized: dict[str, Bytes] = {}
    for file, names in weights.items():
        if not (folder / file).is_file():
            raise SourceError(f"{folder / file}: there is no such file: fetch the model again")
        files[file] = SourceFile(folder / file)
        there = _header(folder / file)
        for name in there if names is None else names:
            if name not in there:
                raise SourceError(f"{folder / file}: tensor {name} is missing, which the index says is in this file")
            entry, base = there[name]
            if entry["dtype"] == "U8":
                quantized[name] = BytesTensor(files[file], tuple(entry["shape"]), base + entry["data_offsets"][0])
            elif not name.endswith(_CONSTANTS):
                tensors[name] = _tensor(files[file], name, entry, base)
    return tensors, quantized


def _header(path: Path) -> dict[str, tuple[dict[str, Any], int]]:
    """Each tensor's entry in the header, and where in the file the entry's offsets count from."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, _MAX_HEADER))
        with safe_open(path, framework="numpy"):  # checks that sizes and offsets fit each other and the file
            pass
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise SourceError(f"{path}: is not a whole safetensors file ({error}): fetch it again") from error
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    return {name: (entry, 8 + length) for name, entry in entries.items()}


def _tensor(file: SourceFile, name: str, entry: dict[str, Any], base: int) -> SafetensorsTensor:
    if entry["dtype"] not in _ITEM_BYTES:
        raise SourceError(f"{file.path}: tensor {name} is of type {entry['dtype']}, which edgert does not read; "
                          f"it reads {', '.join(_ITEM_BYTES)}")
    return SafetensorsTensor(file, name, tuple(entry["shape"]), entry["dtype"], base + entry["data_offsets"][0])
