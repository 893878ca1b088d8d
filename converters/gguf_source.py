"""GGUF files, llama.cpp's format: the model in one, as a `Source`."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import Q4_K, dequantize

from edgert.converters.gguf_tokenizer import tokenizer_from_gguf
from edgert.errors import SourceError, UnsupportedError

from .gguf_header import Header, TensorInfo, read_header
from .reading import check_rows, family_config, gguf_architecture, model_tensors, require_finite
from .source import Grid, Source, SourceTensor
from .source_file import SourceFile

_PLAIN = (Type.F32, Type.F16, Type.BF16)
_TYPES = (*_PLAIN, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0,
          Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K)
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
        """The 4-bit grid of rows start to stop of a Q4_0, Q4_1 or Q4_K tensor; otherwise None. Raises SourceError.

        Scales are never negative: where the file's is, the grid is the mirrored one, with q' = 15 - q.
        """
        if self.info.type not in (Type.Q4_0, Type.Q4_1, Type.Q4_K):
            return None
        blocks = self._rows(start, stop).reshape(-1, GGML_QUANT_SIZES[self.info.type][1])
        d, second = _halves(blocks[:, :2]), _halves(blocks[:, 2:4])
        with np.errstate(all="ignore"):  # infinities are found below
            if self.info.type == Type.Q4_0:
                scale, minimum = d, 8 * d
            elif self.info.type == Type.Q4_1:
                scale, minimum = d, -second
            else:
                scales, minimums = Q4_K.get_scale_min(blocks[:, 4:16])
                scale, minimum = d * scales, second * minimums
        shape = (stop - start, self.shape[-1] // 32)
        scale = require_finite(scale, self.file.path, self.info.name).reshape(shape)
        minimum = require_finite(minimum, self.file.path, self.info.name).reshape(shape)
        return Grid(np.abs(scale), np.where(scale < 0, minimum - 15 * scale, minimum))

    def _rows(self, start: int, stop: int) -> np.ndarray:
        """The bytes of rows start to stop, uint8 of shape (rows, bytes per row)."""
        check_rows(start, stop, self.shape[0])
        row = self.info.size // self.shape[0]
        return self.file.read(self.info.offset + start * row, (stop - start) * row).reshape(stop - start, row)


def open_gguf(path: str | Path, *, hashed: bool = True) -> Source:
    """The model in a GGUF file. Reads the header, the file once for its hash (if `hashed`), and no tensor before it is
    asked for.

    Raises SourceError where the file is damaged or hostile, and UnsupportedError where it is in parts, or of a family
    or a quantization that edgert does not read.
    """
    path = Path(path)
    file = SourceFile(path)
    header = read_header(path)
    try:
        return _source(path, file, header, hashed=hashed)
    except SourceError as error:
        raise UnsupportedError(str(error)) from error


def _source(path: Path, file: SourceFile, header: Header, *, hashed: bool) -> Source:
    """The model in a file whose header is whole. Raises SourceError."""
    metadata = header.metadata
    if metadata.get("split.count", 0) not in (0, 1):
        raise SourceError(f"{path}: is one of {metadata['split.count']} parts of a model: join them into one file "
                          "first, with llama.cpp's llama-gguf-split --merge")
    for info in header.tensors.values():
        if info.type not in _TYPES:
            raise SourceError(f"{path}: tensor {info.name} is quantized as {info.type.name}, which edgert does not "
                              f"read; it reads {', '.join(kind.name for kind in _TYPES)}")
        if len(info.shape) == 1 and info.type not in _PLAIN:
            raise SourceError(f"{path}: tensor {info.name} is a vector stored as {info.type.name}, which no model has")
    if "token_embd.weight" not in header.tensors:
        raise SourceError(f"{path}: tensor token_embd.weight is missing: this is not a language model")
    factors = _rope_factors(file, header)
    config = family_config(path, gguf_architecture(metadata), lambda family: family.from_gguf(
        metadata,
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in header.tensors,
        rope_frequency_factors=factors))
    found: dict[str, SourceTensor] = {name: GgufTensor(file, info) for name, info in header.tensors.items()
                                      if name != "rope_freqs.weight"}
    tensors = model_tensors(path, config, found, lambda spec: spec.gguf)
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
    provenance = _provenance(file, metadata, hashed=hashed)
    return Source(config, tensors, tokenizer_json, generation, template, provenance, (file,))


def _halves(columns: np.ndarray) -> np.ndarray:
    """Two bytes per block as float32 of shape (blocks, 1)."""
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)


def _rope_factors(file: SourceFile, header: Header) -> tuple[float, ...] | None:
    info = header.tensors.get("rope_freqs.weight")
    if info is None:
        return None
    if len(info.shape) != 1 or info.shape[0] > _MAX_ROPE_FACTORS:
        raise SourceError(f"{file.path}: tensor rope_freqs.weight has the impossible shape {list(info.shape)}")
    factors = GgufTensor(file, info).read(0, info.shape[0])
    if (factors <= 0).any():
        raise SourceError(f"{file.path}: tensor rope_freqs.weight has values that are not above 0")
    return tuple(float(factor) for factor in factors)


def _provenance(file: SourceFile, metadata: Mapping[str, Any], *, hashed: bool) -> dict[str, Any]:
    provenance = {"source": file.path.name, **({"sha256": file.sha256} if hashed else {}), "type": "gguf"}
    with suppress(ValueError):  # where it is not given, or is one of a newer llama.cpp
        provenance["file_type"] = LlamaFileType(metadata.get("general.file_type", -1)).name.removeprefix("MOSTLY_")
    for field in ("name", "license"):
        if isinstance(value := metadata.get(f"general.{field}"), str):
            provenance[field] = value
    return provenance
