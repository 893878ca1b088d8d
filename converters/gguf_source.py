"""GGUF files, llama.cpp's format: the model in one, as a `Source`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize

from edgert.converters.gguf_tokenizer import tokenizer_from_gguf
from edgert.errors import SourceError, UnsupportedError
from edgert.models.families import FAMILIES
from edgert.models.rope import GGUF_TENSORS

from .expert_tensors import with_experts_of_gguf
from .gguf_grids import grid_of
from .gguf_header import Header, TensorInfo, read_header
from .gguf_parts import existing_parts, require_part
from .reading import family_config, gguf_architecture, model_tensors, require_finite
from .rows import check_rows
from .source import Grid, Source, SourceTensor
from .source_file import Reading, SourceFile, hashes, unheard

_PLAIN = (Type.F32, Type.F16, Type.BF16)
_TYPES = (*_PLAIN, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0,
          Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K,
          Type.IQ1_S, Type.IQ1_M, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S, Type.IQ4_NL,
          Type.IQ4_XS, Type.TQ1_0, Type.TQ2_0, Type.MXFP4, Type.NVFP4)
_MAX_ROPE_FACTORS = 65_536


class GgufTensor:
    """A `SourceTensor` in a GGUF file. Matrices of experts, which are one tensor there, are one below the other."""

    def __init__(self, file: SourceFile, info: TensorInfo) -> None:
        self.file, self.info = file, info
        self.shape = (info.shape[0] * info.shape[1], info.shape[2]) if len(info.shape) == 3 else info.shape
        self.type_name: str = info.type.name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (elements, of a vector) as float32. Raises SourceError."""
        raw = self._rows(start, stop)
        shape = (stop - start, *self.shape[1:])
        if stop == start:
            return np.empty(shape, dtype=np.float32)
        with np.errstate(all="ignore"):  # infinities are found below
            values = dequantize(raw, self.info.type).reshape(shape)
        return require_finite(values, self.file.path, self.info.name)

    def grid(self, start: int, stop: int) -> Grid | None:
        """The grid of rows start to stop, where the type has one; otherwise None. Raises SourceError.

        Scales are never negative: where the file's is, the grid is the mirrored one, with q' = top - q.
        """
        blocks = self._rows(start, stop).reshape(-1, GGML_QUANT_SIZES[self.info.type][1])
        with np.errstate(all="ignore"):  # infinities are found below
            found = grid_of(self.info.type, blocks)
        if found is None:
            return None
        (scale, minimum), top = found
        shape = (stop - start, self.shape[-1] // 32)
        scale = require_finite(scale, self.file.path, self.info.name).reshape(shape)
        minimum = require_finite(minimum, self.file.path, self.info.name).reshape(shape)
        return Grid(np.abs(scale), np.where(scale < 0, minimum - top * scale, minimum), top)

    def _rows(self, start: int, stop: int) -> np.ndarray:
        """The bytes of rows start to stop, uint8 of shape (rows, bytes per row)."""
        check_rows(start, stop, self.shape[0])
        row = self.info.size // self.shape[0]
        return self.file.read(self.info.offset + start * row, (stop - start) * row).reshape(stop - start, row)


def open_gguf(path: str | Path, *, hashed: bool = True, reading: Reading = unheard) -> Source:
    """The model in a GGUF file, or in all those of which it is one. Reads the headers, the files once for their hashes
    (if `hashed`; `reading` is told how far that has come), and no tensor before it is asked for.

    Raises SourceError where a file is damaged or hostile, or missing, and UnsupportedError where it is of a family or a
    quantization that edgert does not read.
    """
    paths = existing_parts(Path(path))
    parts = [(SourceFile(part), read_header(part)) for part in paths]
    try:
        return _source(paths[0], parts, reading if hashed else None)
    except SourceError as error:
        raise UnsupportedError(str(error)) from error


def _source(path: Path, parts: Sequence[tuple[SourceFile, Header]], reading: Reading | None) -> Source:
    """The model in files whose headers are whole; the first, at `path`, has all but tensors. Raises SourceError."""
    metadata, there = parts[0][1].metadata, _tensors(parts)
    for tensor in there.values():
        info = tensor.info
        if info.type not in _TYPES:
            raise SourceError(f"{tensor.file.path}: tensor {info.name} is quantized as {info.type.name}, which edgert "
                              f"does not read; it reads {', '.join(kind.name for kind in _TYPES)}")
        if len(info.shape) == 1 and info.type not in _PLAIN:
            raise SourceError(f"{tensor.file.path}: tensor {info.name} is a vector stored as {info.type.name}, which "
                              "no model has")
    if "token_embd.weight" not in there:
        raise SourceError(f"{path}: tensor token_embd.weight is missing: this is not a language model")
    factors = _rope_factors(there)
    config = family_config(path, gguf_architecture(metadata), FAMILIES, lambda family: family.from_gguf(
        metadata,
        vocab_size=there["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in there,
        tensors=there.keys(),
        rope_tensors=factors))
    found: dict[str, SourceTensor] = {name: tensor for name, tensor in there.items() if name not in GGUF_TENSORS}
    if config.experts:
        found = with_experts_of_gguf(found)
    tensors = model_tensors(path, config, found, lambda spec: spec.gguf, by_head=False)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > config.vocab_size:
        raise SourceError(f"{path}: has {len(tokens)} tokens but embeddings for {config.vocab_size}")
    try:
        tokenizer_json, generation = tokenizer_from_gguf(metadata)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise SourceError(f"{path}: tokenizer.chat_template is not text")
    files = tuple(file for file, _ in parts)
    provenance = _provenance(files, metadata, reading)
    return Source(config, tensors, tokenizer_json, generation, template, provenance, files)


def _tensors(parts: Sequence[tuple[SourceFile, Header]]) -> dict[str, GgufTensor]:
    """The tensors of all files by name. Raises SourceError where these are not the parts of one model."""
    found: dict[str, GgufTensor] = {}
    for number, (file, header) in enumerate(parts):
        require_part(file.path, header.metadata, number, len(parts))
        if twice := found.keys() & header.tensors.keys():
            raise SourceError(f"{file.path}: tensor {min(twice)} is there twice: these are parts of two models")
        found |= {name: GgufTensor(file, info) for name, info in header.tensors.items()}
    path, metadata = parts[0][0].path, parts[0][1].metadata
    if len(parts) > 1 and (all_of := metadata.get("split.tensors.count")) not in (None, len(found)):
        raise SourceError(f"{path}: says that all parts have {all_of} tensors, but they have {len(found)}: these are "
                          "parts of two models")
    return found


def _rope_factors(there: Mapping[str, GgufTensor]) -> dict[str, tuple[float, ...]]:
    """The tensors that are divisors of rotary frequencies, by name. Raises SourceError."""
    found = {}
    for name in there.keys() & set(GGUF_TENSORS):
        tensor = there[name]
        if len(tensor.shape) != 1 or tensor.shape[0] > _MAX_ROPE_FACTORS:
            raise SourceError(f"{tensor.file.path}: tensor {name} has the impossible shape {list(tensor.shape)}")
        factors = tensor.read(0, tensor.shape[0])
        if (factors <= 0).any():
            raise SourceError(f"{tensor.file.path}: tensor {name} has values that are not above 0")
        found[name] = tuple(float(factor) for factor in factors)
    return found


def _provenance(files: Sequence[SourceFile], metadata: Mapping[str, Any], reading: Reading | None) -> dict[str, Any]:
    provenance: dict[str, Any] = {"source": files[0].path.name}
    if reading is not None:
        found = hashes({file.path.name: file for file in files}, reading)
        provenance |= {"files": found} if len(files) > 1 else {"sha256": found[files[0].path.name]}
    provenance["type"] = "gguf"
    with suppress(ValueError):  # where it is not given, or is one of a newer llama.cpp
        provenance["file_type"] = LlamaFileType(metadata.get("general.file_type", -1)).name.removeprefix("MOSTLY_")
    for field in ("name", "license"):
        if isinstance(value := metadata.get(f"general.{field}"), str):
            provenance[field] = value
    return provenance
