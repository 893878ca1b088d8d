"""Writes a bundle of OLMoE's shape, 1.3 of 6.9 billion weights for each token, whose router is like that of real
models.

    python tests/large/make_experts.py FOLDER [--layers 16] [--kept 0.5] [--skew 0.6]

FOLDER/experts.edge is the bundle, at 4 bits; tests/large/experts.py runs it. Weights are random. What is like real
models: some experts are chosen more often than others, and tokens that follow one another have experts in common. A
text has topics, which stay for 32 tokens; the embeddings of a topic's tokens have a part in common, `kept` of their
squares, and so have what routers see. `skew` is the standard deviation of what a router adds to an expert's logit
whatever it sees; of what it sees the others come from it is 1. What comes of that is printed: published traces have
about a third to a half of a token's experts among those of the one before (Eliseev and Mazur 2023; Muennighoff et al.
2024, of OLMoE, report a balanced load over all, far from balanced in one domain).

Experts, and matrices of one shape, are copies of one another, which saves an hour of quantizing: where a byte comes
from, and when, does not depend on what it is.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from make_sparse import TOPIC, text, tokenizer_json

from edgert.bundle import BundleWriter
from edgert.bundle.header import ACTIVITY_PARTS
from edgert.converters.calibration import Calibration
from edgert.converters.convert import _Conversion
from edgert.converters.layout import lay_out
from edgert.converters.ordering import misses
from edgert.converters.packing import Packing
from edgert.converters.presets import preset
from edgert.converters.source import Source
from edgert.models.olmoe import Config
from edgert.models.tensors import Role, TensorSpec

SHAPE: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 50304, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "num_experts": 64, "num_experts_per_tok": 8}
CONSTANT = 8
"""Components of the residual stream that are the same for all tokens: what a router adds whatever it sees."""
WINDOWS, WINDOW = 4, 128


class Tensor:
    """A `SourceTensor` that is made when it is read; rows of experts repeat."""

    type_name = "BF16"

    def __init__(self, spec: TensorSpec, values: np.ndarray) -> None:
        self.shape, self._values = spec.shape, values

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = len(self._values)
        if rows == self.shape[0]:
            return self._values[start:stop].astype(np.float32)
        return self._values[np.arange(start, stop) % rows].astype(np.float32)

    def grid(self, start: int, stop: int) -> None:
        return None


def tensors(config: Config, kept: float, skew: float, seed: int) -> dict[str, Tensor]:
    rng, found = np.random.default_rng(seed), {}
    wide, layers = config.hidden_size, config.num_hidden_layers
    shared: dict[Any, np.ndarray] = {}
    for spec in config.tensors():
        rows, columns = spec.shape if spec.is_matrix else (spec.shape[0], 1)
        if not spec.is_matrix:
            values = np.ones(spec.shape, np.float32)
        elif spec.role is Role.EMBEDDING:
            topics = rng.standard_normal((-(-rows // TOPIC), wide), np.float32)
            values = np.sqrt(kept) * np.repeat(topics, TOPIC, 0)[:rows]
            values += np.sqrt(1 - kept) * rng.standard_normal((rows, wide), np.float32)
            values[:, :CONSTANT] = 1
            values = values.astype(np.float16)
        elif spec.role is Role.ROUTER:
            values = rng.standard_normal((rows, wide), np.float32) / np.sqrt(wide)
            values[:, :CONSTANT] = skew * rng.standard_normal((rows, 1), np.float32) / CONSTANT
        else:
            if spec.role in (Role.GATE, Role.UP, Role.DOWN):
                rows //= config.num_experts
            key = spec.role, rows, columns
            if key not in shared:
                made = rng.standard_normal((rows, columns), np.float32) / np.sqrt(columns)
                if spec.role in (Role.ATTENTION_OUTPUT, Role.DOWN):
                    made *= 0.5 / np.sqrt(2 * layers)
                    made[:CONSTANT] = 0
                shared[key] = made.astype(np.float16)
            values = shared[key]
        found[spec.name] = Tensor(spec, values)
    return found


class Copies(Packing):
    """Packs what is the same once."""

    _made: Mapping[Any, Any] = {}

    def matrix(self, spec: TensorSpec) -> Any:
        key = spec.shape, self._header.tensors[spec.name].format
        if spec.role is Role.ROUTER:
            return list(super().matrix(spec))
        if key not in self._made:
            self._made = {**self._made, key: list(super().matrix(spec))}
        return self._made[key]

    def experts(self, layer: int, part: Any) -> Any:
        n = self._header.neurons[layer]
        if (n.gate_up, n.down) not in self._made:
            self._made = {**self._made, (n.gate_up, n.down): next(super().experts(layer, part))}
        return [self._made[n.gate_up, n.down]] * self._header.config.experts


def write(folder: Path, layers: int, kept: float, skew: float, seed: int = 0) -> dict[str, Any]:
    """Write the bundle. Returns how often experts are chosen, and chosen again."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Config.from_hf({**SHAPE, "num_hidden_layers": layers})
    vocabulary = config.vocab_size
    source = Source(config, tensors(config, kept, skew, seed), tokenizer_json(vocabulary),
                    {"bos_token_id": None, "eos_token_ids": [2], "add_bos_token": False}, None, {"source": "random"})
    header = lay_out(source, preset("q4"), {"source": "random"})
    windows = np.array(text(vocabulary, WINDOWS * WINDOW, seed=1)).reshape(WINDOWS, WINDOW)
    calibration, again, top = Calibration(source, windows, set()), [], []
    for layer in range(layers):
        active = calibration.active(layer)
        header.activity[layer] = np.round(10000 * misses(active, ACTIVITY_PARTS)).astype(int).tolist()
        again.append((active[1:] & active[:-1]).sum() / active[1:].sum())
        shares = np.sort(active.mean(0))[::-1]
        top.append(shares[:len(shares) // 4].sum() / shares.sum())
    with BundleWriter(folder / "experts.edge", header) as writer:
        conversion = _Conversion(source, header, writer, lambda what, done, total: None, False, [])
        conversion._packing = Copies(source, header, lambda name: None)
        conversion.run()
        writer.commit()
    return {"chosen_again": [round(float(x), 3) for x in again],
            "of_the_first_quarter": [round(float(x), 3) for x in top], "activity": header.activity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--skew", type=float, default=0.6)
    arguments = parser.parse_args()
    print(json.dumps(write(arguments.folder, arguments.layers, arguments.kept, arguments.skew)))


if __name__ == "__main__":
    main()
