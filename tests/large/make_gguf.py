"""Writes a GGUF file of random weights in the shape of a real model, with the types that a Q4_K_M has.

    python tests/large/make_gguf.py OUT.gguf [--shape 7b|reglu|1b|tiny] [--tokenizer-from REFERENCE.gguf] [--seed N]

For what needs size and not sense: memory, speed, identity of answers. Tensors are written in pieces: it takes some
130 MB whatever the shape. The tokenizer is the reference's, its vocabulary filled up with [PADn] to that of the shape.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from edgert.converters.gguf_header import read_header

REFERENCE = Path.home() / ".cache/edgert-test-models/Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf"
DEVIATION = 0.02
"""Of the weights: a sum over some thousand of them stays near 1."""
POOL_BLOCKS = 1 << 16
UNUSED = 5
"""gguf-py, TokenType."""


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int = 0
    """At least so many; 0 for those that the tokenizer has."""


SHAPES = {
    "7b": Shape(3584, 18944, 28, 28, 4, 128, 152064),  # Qwen2.5 7B
    "reglu": Shape(2048, 7168, 32, 16, 4, 128),  # make_sparse.py
    "1b": Shape(2048, 5632, 22, 16, 4, 128),
    "tiny": Shape(256, 768, 4, 4, 2, 64),
}


def tensors(shape: Shape, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...], Type]]:
    """Names, shapes and types, in the order of the file."""
    query, key = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    hidden, wide = shape.hidden, shape.intermediate
    yield "output.weight", (vocabulary, hidden), Type.Q6_K
    yield "token_embd.weight", (vocabulary, hidden), Type.Q4_K
    for layer in range(shape.layers):
        finer = Type.Q6_K if _more_bits(layer, shape.layers) else Type.Q4_K
        for name, of, kind in (
                ("attn_norm.weight", (hidden,), Type.F32),
                ("ffn_down.weight", (hidden, wide), finer),
                ("ffn_gate.weight", (wide, hidden), Type.Q4_K),
                ("ffn_up.weight", (wide, hidden), Type.Q4_K),
                ("ffn_norm.weight", (hidden,), Type.F32),
                ("attn_k.bias", (key,), Type.F32),
                ("attn_k.weight", (key, hidden), Type.Q4_K),
                ("attn_output.weight", (hidden, query), Type.Q4_K),
                ("attn_q.bias", (query,), Type.F32),
                ("attn_q.weight", (query, hidden), Type.Q4_K),
                ("attn_v.bias", (key,), Type.F32),
                ("attn_v.weight", (key, hidden), finer)):
            yield f"blk.{layer}.{name}", of, kind
    yield "output_norm.weight", (hidden,), Type.F32


def _more_bits(layer: int, layers: int) -> bool:
    """As llama.cpp's Q4_K_M: the first and last eighth of the layers and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


class Blocks:
    """Random blocks of one type: one pool, for every piece turned by another angle and with other bits flipped."""

    def __init__(self, kind: Type, random: np.random.Generator) -> None:
        self._random = random
        size = GGML_QUANT_SIZES[kind][1]
        self._pool = random.integers(0, 256, (POOL_BLOCKS, size), np.uint8)
        self._flipped = np.ones(size, bool)
        fill, kept = {Type.Q4_K: (self._q4_k, slice(0, 16)), Type.Q6_K: (self._q6_k, slice(192, 210))}[kind]
        fill(random.uniform(0.8, 1.2, POOL_BLOCKS) * DEVIATION)
        self._flipped[kept] = False

    def _q4_k(self, deviations: np.ndarray) -> None:
        """Weight = d * scale * nibble - dmin * minimum; minimum = scale and dmin = 7.5 * d give a mean of 0."""
        scales = self._random.integers(32, 64, (POOL_BLOCKS, 8), np.uint8)
        d = deviations / (48.4 * np.sqrt((16 ** 2 - 1) / 12))
        self._pool[:, 0:2] = _halves(d)
        self._pool[:, 2:4] = _halves(7.5 * d)
        low, high = scales[:, :4], scales[:, 4:]
        self._pool[:, 4:8] = self._pool[:, 8:12] = low | high >> 4 << 6
        self._pool[:, 12:16] = high & 15 | (high & 15) << 4

    def _q6_k(self, deviations: np.ndarray) -> None:
        """Weight = d * scale * (number of 6 bits - 32), scales of either sign."""
        scales = self._random.integers(8, 16, (POOL_BLOCKS, 16)) * self._random.choice((-1, 1), (POOL_BLOCKS, 16))
        self._pool[:, 192:208] = scales.astype(np.int8).view(np.uint8)
        self._pool[:, 208:210] = _halves(deviations / (11.7 * np.sqrt((64 ** 2 - 1) / 12)))

    def pieces(self, count: int) -> Iterator[np.ndarray]:
        """`count` blocks, uint8, some MB at a time."""
        while count > 0:
            flips = self._random.integers(0, 256, self._pool.shape[1], np.uint8) * self._flipped
            turned = np.roll(self._pool, int(self._random.integers(POOL_BLOCKS)), axis=0)
            turned ^= flips
            yield turned[:count]
            count -= POOL_BLOCKS


def _halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)[:, None].view(np.uint8)


def padded(metadata: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The tokenizer's metadata with a vocabulary of at least this size."""
    kept = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    first = len(kept["tokenizer.ggml.tokens"])
    kept["tokenizer.ggml.tokens"] += [f"[PAD{i}]" for i in range(first, vocabulary)]
    for key, filler in (("token_type", UNUSED), ("scores", -1e4)):
        if values := kept.get(f"tokenizer.ggml.{key}"):
            values += [filler] * (vocabulary - first)
    return kept


def describe(writer: GGUFWriter, name: str, shape: Shape, tokenizer: dict[str, Any]) -> None:
    """Adds the metadata."""
    writer.add_type("model")
    writer.add_name(f"Random weights in the shape {name}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(2)
    for key, value in tokenizer.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
               list: writer.add_array}[type(value)]
        add(key, value)


def write(out: Path, name: str, reference: Path, seed: int) -> None:
    """Writes the file."""
    shape, random = SHAPES[name], np.random.default_rng(seed)
    tokenizer = padded(read_header(reference).metadata, shape.vocabulary)
    writer = GGUFWriter(out, "qwen2")
    describe(writer, name, shape, tokenizer)
    wanted = list(tensors(shape, len(tokenizer["tokenizer.ggml.tokens"])))
    for tensor, of, kind in wanted:
        block, size = GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(tensor, of, np.dtype(np.float32), int(np.prod(of)) // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    blocks = {kind: Blocks(kind, random) for kind in (Type.Q4_K, Type.Q6_K)}
    for tensor, of, kind in wanted:
        writer.write_padding(file, file.tell())
        if kind != Type.F32:
            for piece in blocks[kind].pieces(int(np.prod(of)) // GGML_QUANT_SIZES[kind][0]):
                file.write(piece)
        elif tensor.endswith("norm.weight"):
            file.write(np.ones(of, np.float32))
        else:
            file.write(random.normal(0, DEVIATION, of).astype(np.float32))
    writer.write_padding(file, file.tell())
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--tokenizer-from", type=Path, default=REFERENCE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    write(args.out, args.shape, args.tokenizer_from, args.seed)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
