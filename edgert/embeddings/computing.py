"""Computes vectors of texts with onnxruntime: the tokenizer, batches, the model, pooling."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from edgert.errors import EmbeddingError

from .pooling import normalized, pooled
from .recipe import Recipe

_BATCH_TOKENS = 256
"""Of a batch, padding included; one text may be longer. With more of them it is no faster, and takes more memory."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_PADDING = ("[PAD]", "<pad>")
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Computed(NamedTuple):
    """vectors: float32 of shape (texts, dimension). tokens: of each text, the special ones included. cut: of how many
    texts not all was computed."""

    vectors: np.ndarray
    tokens: list[int]
    cut: int


class Computing:
    """A model, loaded. onnx: the file, as `preparing` writes it. Raises EmbeddingError."""

    def __init__(self, recipe: Recipe, onnx: Path, threads: int) -> None:
        self._recipe = recipe
        self._session = session(onnx, threads, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
        self._inputs = {value.name: _TYPES.get(value.type, np.int64) for value in self._session.get_inputs()}
        if unknown := set(self._inputs) - set(_INPUTS):
            raise EmbeddingError(f"{recipe.onnx}: wants an input {sorted(unknown)[0]}; models of texts take "
                                 f"{', '.join(_INPUTS)}")
        outputs = {value.name: len(value.shape) for value in self._session.get_outputs()}
        hidden = next((name for name, axes in outputs.items() if axes == 3), None)
        self._whole = outputs.get("sentence_embedding") == 2  # pooled by the model itself
        if hidden is None and not self._whole:
            raise EmbeddingError(f"{recipe.onnx}: has no output with a vector for each token")
        self._output = "sentence_embedding" if self._whole else hidden
        self._tokenizer = _tokenizer(recipe)
        self._padding, self._left = _padding(self._tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(recipe.max_tokens)

    def compute(self, texts: Sequence[str]) -> Computed:
        """The vectors of texts."""
        encodings = self._tokenizer.encode_batch(list(texts))
        tokens = [encoding.ids for encoding in encodings]
        vectors: list[np.ndarray] = [np.empty(0)] * len(texts)
        for batch in _batches([len(ids) for ids in tokens]):
            for index, vector in zip(batch, self._vectors([tokens[index] for index in batch]), strict=True):
                vectors[index] = vector
        return Computed(np.stack(vectors), [len(ids) for ids in tokens],
                        sum(bool(encoding.overflowing) for encoding in encodings))

    def compute_most(self) -> int:
        """Compute batches that take as much memory as any: a long text, and short ones, of tokens from all over the
        vocabulary. Returns the dimension."""
        most, rows = self._recipe.max_tokens, self._tokenizer.get_vocab_size()
        dimension = 0
        for width, count in ((most, 1), (16, max(_BATCH_TOKENS // 16, 1)), (8, max(_BATCH_TOKENS // 8, 1))):
            spread = np.linspace(0, rows - 1, width * count).astype(np.int64).reshape(count, width)
            dimension = self._vectors(spread.tolist()).shape[1]
        return dimension

    def _vectors(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """The vectors of one batch: float32 of shape (texts, dimension)."""
        width = max(map(len, tokens))
        ids = np.full((len(tokens), width), self._padding, np.int64)
        mask = np.zeros_like(ids)
        for row, own in enumerate(tokens):
            place = slice(width - len(own), width) if self._left else slice(0, len(own))
            ids[row, place], mask[row, place] = own, 1
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids),
                  "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)}
        output = self._session.run([self._output], {name: values[name].astype(kind, copy=False)
                                                    for name, kind in self._inputs.items()})[0]
        output = np.asarray(output, np.float32)
        vectors = output if self._whole else pooled(output, mask, self._recipe.pooling)
        return normalized(vectors) if self._recipe.normalize else vectors


def session(onnx: Path, threads: int, level: "onnxruntime.GraphOptimizationLevel", *,
            write: Path | None = None) -> "onnxruntime.InferenceSession":
    """Load a model. write: a file for the optimized one; its weights go into a file beside it. Raises EmbeddingError.

    Memory is given back after each run: an arena would keep the most that any run took. Threads that wait do not spin:
    the processor is for those that answer.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if write is not None:
        options.optimized_model_filepath = str(write)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name",
                                         write.with_suffix(".weights").name)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "4096")
    try:
        return onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no base in common
        raise EmbeddingError(f"{onnx}: onnxruntime cannot load it: {str(error).strip()}") from None


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts that go together: of similar lengths, and few enough tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _tokenizer(recipe: Recipe) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(recipe.tokenizer))
    except Exception as error:  # the library's own has no other base
        raise EmbeddingError(f"{recipe.tokenizer}: is not a tokenizer of the tokenizers library: {error}") from None


def _padding(tokenizer: Tokenizer) -> tuple[int, bool]:
    """The token for padding, and whether it goes to the left."""
    if (padding := tokenizer.padding) is not None:
        return int(padding["pad_id"]), padding["direction"] == "left"
    return next((token for name in _PADDING if (token := tokenizer.token_to_id(name)) is not None), 0), False
