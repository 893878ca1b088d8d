"""Writes a mixture of experts whose router is like that of real models, as a bundle and as a GGUF file.

    python tests/large/make_experts.py FOLDER [--shape olmoe|qwen3-30b] [--layers N] [--kept 0.5] [--skew 0.6]
        [--windows 4] [--quick] [--losses] [--parts bundle,gguf]

FOLDER/experts.edge is the bundle, at 4 bits, FOLDER/experts.gguf has the same weights as Q4_0 (experts_gguf.py);
tests/large/experts.py runs both. Shapes: OLMoE's, 1.3 of 6.9 billion weights for each token, and Qwen3-30B-A3B's, 3.3
of 30.5. Weights are random. What is like real models: some experts are chosen more often than others, and tokens that
follow one another have experts in common. A text has topics, which stay for 32 tokens; the embeddings of a topic's
tokens have a part in common, `kept` of their squares, and so have what routers see. `skew` is the standard deviation of
what a router adds to an expert's logit whatever it sees; of what it sees the others come from it is 1. What comes of
that is printed: published traces have about a third to a half of a token's experts among those of the one before
(Eliseev and Mazur 2023; Muennighoff et al. 2024, of OLMoE, report a balanced load over all, far from balanced in one
domain).

With --losses the bundle says what it costs to leave out experts, as measured by converters/left_out.py with one
of the windows. Of real models that says nothing: these layers change little of the residual stream.

Experts, and matrices of one kind, are copies of one another, which saves an hour of quantizing: where a byte comes
from, and when, does not depend on what it is.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import experts_gguf
import numpy as np
from make_sparse import TOPIC, text, tokenizer_json

from edgert.bundle import BundleWriter
from edgert.bundle.header import ACTIVITY_PARTS
from edgert.converters.calibration import Calibration
from edgert.converters.convert import _Conversion
from edgert.converters.layout import lay_out
from edgert.converters.left_out import thresholds_of
from edgert.converters.ordering import misses
from edgert.converters.packing import Packing
from edgert.converters.pieces import Pieces
from edgert.converters.presets import preset
from edgert.converters.source import Source
from edgert.models import olmoe, qwen3moe
from edgert.models.expert_config import Config
from edgert.models.tensors import Role, TensorSpec

SHAPES: dict[str, tuple[type[Config], dict[str, Any]]] = {
    "olmoe": (olmoe.Config, {
        "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 50304, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "num_experts": 64, "num_experts_per_tok": 8}),
    "qwen3-30b": (qwen3moe.Config, {
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True}),
}
CONSTANT = 8
"""Components of the residual stream that are the same for all tokens: what a router adds whatever it sees."""
WINDOW = 128


class Tensor:
    """A `SourceTensor` whose rows repeat `values`, which are float32 and have the precision of float16."""

    type_name = "BF16"

    def __init__(self, spec: TensorSpec, values: np.ndarray) -> None:
        self.shape, self.values = spec.shape, values

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = len(self.values)
        if start // rows == (stop - 1) // rows:
            return self.values[start % rows:(stop - 1) % rows + 1]
        return self.values[np.arange(start, stop) % rows]

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
            values = values.astype(np.float16).astype(np.float32)
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
                shared[key] = made.astype(np.float16).astype(np.float32)
            values = shared[key]
        found[spec.name] = Tensor(spec, values)
    return found


class Copies(Packing):
    """Packs what is the same once."""

    _made: Mapping[Any, Any] = {}

    def matrix(self, spec: TensorSpec) -> Any:
        key = spec.role, spec.shape, self._header.tensors[spec.name].format
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


def asked_of_embeddings(config: Config, made: Mapping[str, Tensor], ids: np.ndarray) -> Iterator[np.ndarray]:
    """What Calibration.active would say of each layer, if layers changed nothing of the residual stream. They change
    little here, and nothing has to be computed for it."""
    x = made["model.embed_tokens.weight"].values[ids.ravel()]
    x = x / np.sqrt(np.square(x).mean(1, keepdims=True))
    for spec in config.tensors():
        if spec.role is Role.ROUTER:
            chosen = np.argsort(-(x @ made[spec.name].values.T), 1, kind="stable")[:, :config.num_experts_per_tok]
            active = np.zeros((len(x), config.num_experts), bool)
            np.put_along_axis(active, chosen, True, 1)
            yield active


def write_bundle(path: Path, config: Config, made: Mapping[str, Tensor], windows: int, quick: bool,
                 losses: bool) -> dict[str, Any]:
    """Write the bundle. Returns how often experts are chosen, and chosen again. windows: of text to calibrate with.
    quick: by asked_of_embeddings. losses: also measure what it costs to leave some out."""
    vocabulary = config.vocab_size
    source = Source(config, dict(made), tokenizer_json(vocabulary),
                    {"bos_token_id": None, "eos_token_ids": [2], "add_bos_token": False}, None, {"source": "random"})
    header = lay_out(source, preset("q4"), {"source": "random"})
    ids = np.array(text(vocabulary, windows * WINDOW, seed=1)).reshape(windows, WINDOW)
    calibration, again, top = Calibration(source, ids, set()), [], []
    computed = map(calibration.active, range(config.num_hidden_layers))
    for layer, active in enumerate(asked_of_embeddings(config, made, ids) if quick else computed):
        header.activity[layer] = np.round(10000 * misses(active, ACTIVITY_PARTS)).astype(int).tolist()
        again.append((active[1:] & active[:-1]).sum() / active[1:].sum())
        shares = np.sort(active.mean(0))[::-1]
        top.append(shares[:len(shares) // 4].sum() / shares.sum())
    if losses:
        header.quantization["expert_loss"] = Calibration(
            source, ids[:1], set(), thresholds=thresholds_of(config)).left_out_losses()
    with BundleWriter(path, header) as writer:
        pieces = Pieces(source, header, None)
        pieces._packing = Copies(source, header, lambda name: None)
        _Conversion(source, header, pieces, writer, lambda what, done, total: None, 1).run()
        writer.commit()
    return {"chosen_again": [round(float(x), 3) for x in again],
            "of_the_first_quarter": [round(float(x), 3) for x in top], "activity": header.activity,
            "expert_loss": header.quantization["expert_loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="olmoe")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--skew", type=float, default=0.6)
    parser.add_argument("--windows", type=int, default=4, help=f"of {WINDOW} tokens, to calibrate with")
    parser.add_argument("--quick", action="store_true",
                        help="calibrate with embeddings, as if layers changed nothing of them")
    parser.add_argument("--losses", action="store_true", help="measure what it costs to leave out experts")
    parser.add_argument("--parts", type=lambda value: value.split(","), default=["bundle", "gguf"])
    arguments = parser.parse_args()
    folder, (family, shape) = arguments.folder, SHAPES[arguments.shape]
    folder.mkdir(parents=True, exist_ok=True)
    config = family.from_hf({**shape, "num_hidden_layers": arguments.layers or shape["num_hidden_layers"]})
    made = tensors(config, arguments.kept, arguments.skew, seed=0)
    if "gguf" in arguments.parts:
        experts_gguf.write(folder / "experts.gguf", config, made, tokenizer_json(config.vocab_size))
    if "bundle" in arguments.parts:
        print(json.dumps(write_bundle(folder / "experts.edge", config, made, arguments.windows,
                                      arguments.quick, arguments.losses)))


if __name__ == "__main__":
    main()
