"""A model small enough to convert a thousand times, in Hugging Face's layout, and its bundle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgert.bundle import Bundle
from edgert.bundle.header import MAGIC, PREFIX_BYTES, VERSION
from edgert.converters.convert import convert
from edgert.kernels.formats import FORMATS, TILE, whole
from edgert.kernels.groups import row_tiles_of
from edgert.models.families import MODEL_TYPES

CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 20,
          "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "tie_word_embeddings": True,
          "bos_token_id": 0, "eos_token_id": 1}
"""As Llama and Qwen2 have it. What an OPT calls by other names, `write_model` adds."""


def write_model(folder: Path, *, size: float = 1.0, seed: int = 0, **config: Any) -> Path:
    """A safetensors folder of random weights with standard deviation `size`; config overrides CONFIG."""
    folder.mkdir(exist_ok=True)
    merged = {**CONFIG, **config}
    if merged["model_type"] == "opt":
        merged["ffn_dim"] = merged["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(merged))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    words = {"<s>": 0, "</s>": 1, **{chr(97 + i): 2 + i for i in range(16)}}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    random = np.random.default_rng(seed)
    tensors = MODEL_TYPES[merged["model_type"]].Config.from_hf(merged).tensors()
    save_file({spec.name: size * random.standard_normal(spec.shape, np.float32) for spec in tensors},
              folder / "model.safetensors")
    return folder


def write_mixture(folder: Path) -> Path:
    """The same of a mixture of twelve experts in each of three layers, of which a token has three."""
    return write_model(folder, model_type="mixtral", size=0.3, hidden_size=64, intermediate_size=150,
                       num_hidden_layers=3, vocab_size=258, num_local_experts=12, num_experts_per_tok=3,
                       max_position_embeddings=512)


def give_tokenizer(folder: Path) -> Path:
    """Give a model of `write_model` a tokenizer of bytes, with which it can be loaded; its vocabulary must have 258."""
    words = {"<s>": 0, "</s>": 1, **{c: 2 + i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    return folder


def prune(folder: Path, *, kept: float = 0.3, of: Callable[[str], bool] = lambda name: True) -> Path:
    """Give the matrices `of` a model of `write_model` zeros: of any 16 rows a share `kept` of the columns is there."""
    random, tensors = np.random.default_rng(1), load_file(folder / "model.safetensors")
    for name, weights in tensors.items():
        if weights.ndim == 2 and of(name):
            there = random.random((-(-len(weights) // TILE), weights.shape[1])) < kept
            tensors[name] = weights * np.repeat(there, TILE, 0)[:len(weights)]
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_bundle(path: Path, preset: str = "q4", *, pruned: bool = False, **options: Any) -> Path:
    """The bundle of `write_model`, whose folder stands beside it; pruned: as `prune` does."""
    folder = write_model(path.with_suffix(".model"), **options)
    convert(str(prune(folder) if pruned else folder), path, preset)
    return path


def whole_groups(bundle: Bundle, layer: int) -> np.ndarray:
    """A layer's neuron groups put together from their planes: uint8 of shape (groups, bytes), without padding."""
    n, hidden_size = bundle.header.neurons[layer], bundle.header.config.hidden_size
    planes = [np.frombuffer(bundle.read_section(section), np.uint8).reshape(n.groups, size)
              for section, size in n.parts()]
    if n.details is None:
        return planes[0]
    gate_up, down = FORMATS[n.gate_up], FORMATS[n.down]
    parts, (base, detail) = [], planes
    row_tile, row_tiles = (gate_up, gate_up.blocks(hidden_size), gate_up.header_bytes), row_tiles_of(
        gated=bundle.header.config.gated)
    for form, blocks, header in (*[row_tile] * row_tiles,
                                 (down, -(-hidden_size // TILE), 0)):
        ends = header + blocks * form.base_bytes, blocks * form.detail_bytes
        parts += [base[:, :header], whole(form, base[:, header:ends[0]].reshape(n.groups, blocks, -1),
                                          detail[:, :ends[1]].reshape(n.groups, blocks, -1)).reshape(n.groups, -1)]
        base, detail = base[:, ends[0]:], detail[:, ends[1]:]
    assert not base.any() and not detail.any()
    return np.concatenate(parts, 1)


def header_of(path: Path) -> dict[str, Any]:
    """The JSON object in a bundle's header."""
    content = path.read_bytes()
    length = int.from_bytes(content[16:24], "little")
    values: dict[str, Any] = json.loads(content[PREFIX_BYTES:PREFIX_BYTES + length])
    return values


def with_header(content: bytes, header: bytes) -> bytes:
    """A bundle's bytes with another header, whose length and checksum are right."""
    start = min(s["offset"] for s in json.loads(
        content[PREFIX_BYTES:PREFIX_BYTES + int.from_bytes(content[16:24], "little")])["sections"].values())
    prefix = MAGIC + VERSION.to_bytes(8, "little") + len(header).to_bytes(8, "little")
    prefix += xxhash.xxh3_64_intdigest(header).to_bytes(8, "little")
    return (prefix + header).ljust(start, b"\0") + content[start:]


def change_header(path: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle with its header's object changed in place."""
    values = header_of(path)
    change(values)
    out.write_bytes(with_header(path.read_bytes(), json.dumps(values, separators=(",", ":")).encode()))
    return out
