"""Writes a safetensors model of random BF16 weights in several files with an index, in the shape of Llama 3 8B or 70B.

    python tests/large/make_shards.py FOLDER [--shape 8b] [--layers 32] [--gb-per-file 2 | --one-layer]

For what a conversion takes of memory: 0.44 or 1.71 GB a layer, 0.26 or 0.52 GB each for embedding and head (of 32,000
tokens). --one-layer: all layers have the weights of the first, and its room on the disk; for a FOLDER on xfs or btrfs.
"""

import argparse
import fcntl
import json
import struct
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgert.models.families import FAMILIES
from edgert.models.tensors import TensorSpec

SHAPES = {"8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32},
          "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}}
CONFIG = {"model_type": "llama", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
          "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 0,
          "eos_token_id": 1}
_BLOCK = 1 << 12
"""Of the file systems: where data begins that files may share."""
_FICLONERANGE = 0x4020940D
DEVIATION, PIECE = 0.02, 1 << 22
"""Of the weights; how many are drawn and written at a time."""


def weights(random: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """So many BF16 weights, as uint16: one draw, cut at another place for every piece."""
    drawn = (random.standard_normal(PIECE, np.float32) * np.float32(DEVIATION)).view(np.uint32) >> 16
    pool = drawn.astype(np.uint16)
    for start in range(0, count, PIECE):
        yield np.roll(pool, int(random.integers(PIECE)))[:count - start]


def write_file(path: Path, specs: list[TensorSpec], random: np.random.Generator, like: Path | None = None) -> None:
    """A safetensors file of these tensors. like: a file of tensors of the same shapes, whose data it shares."""
    header, end = {}, 0
    for spec in specs:
        size = 2 * int(np.prod(spec.shape))
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _BLOCK)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if like is not None:
            with like.open("rb") as other:
                start = 8 + int.from_bytes(other.read(8), "little")
                file.flush()
                fcntl.ioctl(file, _FICLONERANGE, struct.pack("qQQQ", other.fileno(), start, 0, file.tell()))
            return
        for spec in specs:
            if spec.is_matrix:
                for piece in weights(random, int(np.prod(spec.shape))):
                    file.write(piece)
            else:
                file.write(np.full(spec.shape, 0x3F80, np.uint16))  # 1


def by_size(tensors: Iterable[TensorSpec], most: int) -> list[list[TensorSpec]]:
    """Tensors by files, each of which is full when it has more than `most` bytes."""
    files: list[list[TensorSpec]] = [[]]
    for spec in tensors:
        if sum(2 * int(np.prod(there.shape)) for there in files[-1]) > most:
            files.append([])
        files[-1].append(spec)
    return files


def by_layers(tensors: Iterable[TensorSpec]) -> list[list[TensorSpec]]:
    """Tensors by files: those of no layer, then a layer each."""
    return [list(some) for _, some in groupby(sorted(tensors, key=layer_of), key=layer_of)]


def layer_of(spec: TensorSpec) -> int:
    return -1 if spec.layer is None else spec.layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--gb-per-file", type=float, default=2)
    parser.add_argument("--one-layer", action="store_true", help="a file a layer, whose data they share")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    values = {**CONFIG, **SHAPES[args.shape], "num_hidden_layers": args.layers}
    (args.folder / "config.json").write_text(json.dumps(values))
    (args.folder / "tokenizer_config.json").write_text("{}")
    words = {"<s>": 0, "</s>": 1, **{c: 2 + i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (args.folder / "tokenizer.json").write_text(tokenizer.to_str())
    tensors = FAMILIES["llama"].Config.from_hf(values).tensors()
    files = by_layers(tensors) if args.one_layer else by_size(tensors, int(1e9 * args.gb_per_file))
    where, random = {}, np.random.default_rng(0)
    first: Path | None = None
    for number, specs in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        layer = args.one_layer and specs[0].layer is not None
        write_file(args.folder / name, specs, random, like=first if layer else None)
        first = args.folder / name if layer and first is None else first
        where |= {spec.name: name for spec in specs}
    (args.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    size = sum(path.stat().st_size for path in args.folder.iterdir())
    print(f"{args.folder}: {size / 1e9:.2f} GB in {len(files)} files")


if __name__ == "__main__":
    main()
