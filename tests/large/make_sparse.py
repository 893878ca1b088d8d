"""Writes a safetensors model of random weights whose neurons are as sparse as those of models trained with ReLU.

    python tests/large/make_sparse.py FOLDER [--shape opt|reglu|tiny-opt|tiny-reglu] [--active 0.05] [--kept 0.8]
        [--seed N] [--silu]

How it is made to be like what was published:

- *How often* a neuron is active follows a power law: 26 % of the neurons make 80 % of what is active, as in OPT-30B
  (PowerInfer, Song et al. 2023, figure 5). The mean is `--active`; the neurons stand in random order. Where there are
  biases they set it; otherwise some components of the residual stream are the same for all tokens, and what the gate's
  rows have there is a bias.
- *How much stays* from a token to the next ("LLM in a flash", figure 4): tokens have topics, of TOPIC neighbours in the
  vocabulary, and `--kept` is the share that a token's embedding has in common with its topic's. `text` makes a sequence
  of tokens that changes its topic every 32 tokens or so.

For what needs size and not sense: bytes, speed, identity of answers.
"""

import argparse
import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgert.models.families import FAMILIES
from edgert.models.tensors import Role, TensorSpec

TOPIC = 50
"""Tokens of the vocabulary that share one."""
CONSTANT = 16
"""Components of the residual stream that are the same for all tokens, where there are no biases."""
_SPACE = "Ġ"
"""As the byte-level alphabet has it."""
HOT, OF_ACTIVE = 0.26, 0.8
"""So much of the neurons make so much of what is active."""
RANK, OF_RANK = 1 / 32, 0.9

_OPT = {"model_type": "opt", "activation_function": "relu", "word_embed_proj_dim": 2048, "hidden_size": 2048,
        "ffn_dim": 8192, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50272,
        "max_position_embeddings": 2048, "bos_token_id": 2, "eos_token_id": 2}
_REGLU = {"model_type": "llama", "hidden_act": "relu", "hidden_size": 2048, "intermediate_size": 7168,
          "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 49152,
          "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1,
          "eos_token_id": 2}
"""The proportions of TurboSparse-Mistral-7B, at a quarter of its size; make_gguf.py has the same shape for llama.cpp,
which knows no gate with ReLU."""
_TINY = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 600}
SHAPES: dict[str, dict[str, Any]] = {
    "opt": _OPT, "reglu": _REGLU,
    "tiny-opt": _OPT | _TINY | {"word_embed_proj_dim": 256, "ffn_dim": 2048},
    "tiny-reglu": _REGLU | _TINY | {"intermediate_size": 2048, "num_key_value_heads": 4},
}


def text(vocabulary: int, length: int, seed: int = 0, stay: float = 31 / 32) -> list[int]:
    """Tokens of such a model: the topic stays from one to the next with probability `stay`."""
    rng = np.random.default_rng(seed)
    changes = rng.random(length) > stay
    topics = rng.integers(0, vocabulary // TOPIC, length)[np.maximum.accumulate(np.arange(length) * changes)]
    return (topics * TOPIC + rng.integers(0, TOPIC, length)).tolist()


def shares(neurons: int, active: float) -> np.ndarray:
    """How often each neuron is active, in falling order: a power law of the rank, none more often than 0.98."""
    ranks = (1 + np.arange(neurons)) / neurons
    low, high = 0.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        found = _scaled(ranks ** -middle, active)
        low, high = (middle, high) if found[:round(HOT * neurons)].sum() < OF_ACTIVE * found.sum() else (low, middle)
    return _scaled(ranks ** -low, active)


def _scaled(share: np.ndarray, active: float) -> np.ndarray:
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(share * middle, 0.98).mean() < active else (low, middle)
    return np.minimum(share * low, 0.98)


def thresholds(share: np.ndarray) -> np.ndarray:
    """What a standard normal variable exceeds with these probabilities."""
    grid = np.linspace(-4, 6, 200001)
    density = np.exp(-grid ** 2 / 2)
    above = 1 - np.cumsum(density) / density.sum()
    return np.interp(-share, -above, grid)


class Maker:
    """Makes the tensors of a model of this config, one after another."""

    def __init__(self, values: dict[str, Any], active: float, kept: float, seed: int) -> None:
        self.config = FAMILIES[values["model_type"]].Config.from_hf(values)
        self._rng, self._kept = np.random.default_rng(seed), kept
        self._shares = shares(self.config.intermediate_size, active)
        self._gated = self.config.gated
        self._thresholds = np.empty(0)

    def tensors(self) -> Iterator[tuple[TensorSpec, np.ndarray]]:
        for spec in self.config.tensors():
            yield spec, self._made(spec).astype(np.float16)

    def _made(self, spec: TensorSpec) -> np.ndarray:
        rng, shape, wide, layers = self._rng, spec.shape, self.config.hidden_size, self.config.num_hidden_layers
        if spec.role is Role.NORM:
            return np.ones(shape, np.float32)
        if spec.role is Role.UP_BIAS:
            return -self._thresholds
        if not spec.is_matrix or spec.role is Role.POSITION:
            return np.zeros(shape, np.float32)
        if spec.role is Role.EMBEDDING:
            topics = rng.standard_normal((-(-shape[0] // TOPIC), wide), np.float32)
            made = np.sqrt(self._kept) * np.repeat(topics, TOPIC, 0)[:shape[0]]
            made += np.sqrt(1 - self._kept) * rng.standard_normal(shape, np.float32)
            if self._gated:
                made[:, :CONSTANT] = 1
            return made
        made = rng.standard_normal(shape, np.float32) / np.sqrt(shape[1])
        if spec.role is (Role.GATE if self._gated else Role.UP):
            rank = max(round(RANK * shape[1]), 1)
            made *= np.sqrt(np.float32(1 - OF_RANK))
            made += np.sqrt(np.float32(OF_RANK / rank / shape[1])) * (
                rng.standard_normal((shape[0], rank), np.float32) @ rng.standard_normal((rank, shape[1]), np.float32))
            self._thresholds = thresholds(rng.permutation(self._shares)).astype(np.float32)
            if self._gated:  # 1 is what the constant components are, before and behind the norm
                made[:, :CONSTANT] = -self._thresholds[:, None] / CONSTANT
        elif spec.role in (Role.ATTENTION_OUTPUT, Role.DOWN):
            made *= 0.3 / np.sqrt(2 * layers) * (4 if spec.role is Role.DOWN else 1)
            if self._gated:
                made[:CONSTANT] = 0
        return made


def write(folder: Path, shape: str, *, active: float = 0.05, kept: float = 0.8, seed: int = 0) -> Path:
    """Write a model, a shard for each layer, a tokenizer, and calibration.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    values = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(values))
    vocabulary = values["vocab_size"]
    (folder / "tokenizer.json").write_text(tokenizer_json(vocabulary))
    (folder / "calibration.txt").write_text(written(text(vocabulary, 30000, seed=1), vocabulary))
    index: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}
    maker, before = Maker(values, active, kept, seed), None
    for spec, made in maker.tensors():
        if spec.layer != before and shard:
            _save(folder, shard, index)
        before = spec.layer
        shard[spec.name] = made
    _save(folder, shard, index)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def _save(folder: Path, shard: dict[str, np.ndarray], index: dict[str, str]) -> None:
    name = f"model-{len(set(index.values())):05}.safetensors"
    save_file(shard, folder / name)
    index |= dict.fromkeys(shard, name)
    shard.clear()


def _letters(vocabulary: int) -> str:
    """As many as make words of three for most of a vocabulary."""
    count = max(n for n in range(2, 53) if 256 + n + n ** 2 + n ** 3 <= vocabulary)
    return (string.ascii_lowercase + string.ascii_uppercase)[:count]


def tokenizer_json(vocabulary: int) -> str:
    """A byte-level BPE: most tokens are a space and three letters."""
    letters, alphabet = _letters(vocabulary), sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: token for token, letter in enumerate(alphabet)}
    merges = []
    for length in range(3):
        for before in map("".join, itertools.product(letters, repeat=length)):
            for letter in letters:
                merges.append((_SPACE + before, letter))
                words[_SPACE + before + letter] = len(words)
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


def written(tokens: list[int], vocabulary: int) -> str:
    """These tokens as text, for those that are a word of three letters; a neighbour for the others."""
    letters = _letters(vocabulary)
    first = 256 + len(letters) + len(letters) ** 2
    words = ["".join(word) for word in itertools.product(letters, repeat=3)]
    return "".join(" " + words[(token - first) % len(words)] for token in tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="reglu")
    parser.add_argument("--active", type=float, default=0.05)
    parser.add_argument("--kept", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--silu", action="store_true", help="only say in config.json that the activation is SiLU")
    arguments = parser.parse_args()
    if arguments.silu:
        values = SHAPES[arguments.shape] | {"hidden_act": "silu"}
        (arguments.folder / "config.json").write_text(json.dumps(values))
        return
    write(arguments.folder, arguments.shape, active=arguments.active, kept=arguments.kept, seed=arguments.seed)


if __name__ == "__main__":
    main()
