"""Which neurons of a feed-forward part matter for a token: ways to guess it, side by side.

Each way computes a share of a layer's neurons and leaves the others out; its loss is what that does to the perplexity
of a text. As in use, the first half of each window, the prompt, is computed whole; the second half is computed with
what was chosen, and scored. All ways go through the model together, layer by layer, each weight read once. Ways, with
h = act(gate x) * up x and d the norms of the down projection's columns:

- oracle: the largest |h| d. Not to be had without computing them; the measure of the others.
- CATS (Lee et al. 2024): |act(gate x)| above a threshold, the quantile of it over the calibration text.
- CHESS (He et al. 2024): the same of |act(gate x)| times the mean |up x| of the neuron over the calibration text.
- TEAL (Liu et al. 2024): of the inputs of all three matrices those that are largest; so no neurons but columns.
- WINA (Chen et al. 2025): the same of |x_j| times the norm of the matrix's column j.
- R-Sparse (Zhang et al. 2025): as WINA, and what is left out goes through a part of low rank, RANK of the inputs.
- CoreInfer (Wang et al. 2024): those that are most often among a prompt token's most active, the same for the sentence.
- GRIFFIN (Dong et al. 2024): those with the largest norm over the prompt of h, each token's divided by its length.
- low rank (Deja Vu, Liu et al. 2023): |h| d as copies of gate and up of rank RANK say, fitted to the inputs of the
  calibration text.
- base: |h| d as the base planes of gate and up say.
- base, refined: the same, but the others are computed with their base planes and not left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgert.bundle import Bundle
from edgert.errors import SourceError
from edgert.kernels.formats import FORMATS, TILE

from .activations import ACTIVATIONS
from .bundle_source import BundleWeights, LayerWeights
from .calibration import Calibration, Vectors
from .calibration_text import shipped_windows

WINDOW = 256
RANK = 0.25
"""Of the hidden size."""
CORE = 0.4
"""The share of its neurons that is most active in a token, of which CoreInfer counts."""
CALIBRATED = 8
"""Windows of the calibration text."""


@dataclass
class Layer:
    """One layer for all ways: its weights, what calibration says of it, and the prompts' neurons.

    x, h: of the calibration text's tokens. prompts: |h| of the prompts of the windows, (windows, WINDOW / 2, neurons).
    """

    act: Callable[[np.ndarray], np.ndarray]
    weights: LayerWeights
    base: LayerWeights
    x: np.ndarray
    gates: np.ndarray
    ups: np.ndarray
    prompts: np.ndarray

    def __post_init__(self) -> None:
        self.norms = np.linalg.norm(self.weights.down, axis=0)
        self.mean_up = np.abs(self.ups).mean(0)

    def hidden(self, x: np.ndarray, weights: LayerWeights | None = None) -> tuple[np.ndarray, np.ndarray]:
        """act(gate x) and up x."""
        weights = weights or self.weights
        return self.act(x @ weights.gate.T), x @ weights.up.T  # type: ignore[union-attr]


def top(scores: np.ndarray, share: float) -> np.ndarray:
    """The largest of each row, as bool."""
    count = max(round(share * scores.shape[1]), 1)
    least = np.partition(scores, scores.shape[1] - count, 1)[:, scores.shape[1] - count:][:, :1]
    return scores >= least


# Ways that choose neurons: from a layer, the tokens' inputs x, their act(gate x) and up x, and the share, a mask.

def _oracle(layer: Layer, x: np.ndarray, gate: np.ndarray, up: np.ndarray, share: float) -> np.ndarray:
    return top(np.abs(gate * up) * layer.norms, share)


def _cats(layer: Layer, x: np.ndarray, gate: np.ndarray, up: np.ndarray, share: float) -> np.ndarray:
    return np.abs(gate) > np.quantile(np.abs(layer.gates), 1 - share)


def _chess(layer: Layer, x: np.ndarray, gate: np.ndarray, up: np.ndarray, share: float) -> np.ndarray:
    return np.abs(gate) * layer.mean_up > np.quantile(np.abs(layer.gates) * layer.mean_up, 1 - share)


def _for_prompts(layer: Layer, tokens: int, scores: np.ndarray, share: float) -> np.ndarray:
    """The same neurons for all tokens of a window. scores: (windows, neurons)."""
    return np.repeat(top(scores, share), tokens // len(scores), 0)


def _core(layer: Layer, x: np.ndarray, gate: np.ndarray, up: np.ndarray, share: float) -> np.ndarray:
    counts = np.stack([top(prompt, CORE).sum(0) for prompt in layer.prompts])
    return _for_prompts(layer, len(x), counts + layer.prompts.mean(1) / layer.prompts.max(), share)  # breaks ties


def _griffin(layer: Layer, x: np.ndarray, gate: np.ndarray, up: np.ndarray, share: float) -> np.ndarray:
    lengths = np.linalg.norm(layer.prompts, axis=2, keepdims=True)
    return _for_prompts(layer, len(x), np.linalg.norm(layer.prompts / lengths, axis=1), share)


def _low_rank(layer: Layer, x: np.ndarray, gate: np.ndarray, up: np.ndarray, share: float) -> np.ndarray:
    moments = layer.x.T @ layer.x / len(layer.x)
    root = np.linalg.cholesky(moments + 0.01 * moments.diagonal().mean() * np.eye(len(moments), dtype=np.float32))
    assert layer.weights.gate is not None
    of_gate, of_up = (_of_rank(matrix @ root, round(RANK * x.shape[1])) @ np.linalg.inv(root)
                      for matrix in (layer.weights.gate, layer.weights.up))
    made = layer.hidden(x, LayerWeights(of_gate, of_up, layer.weights.down))
    return top(np.abs(made[0] * made[1]) * layer.norms, share)


def _base(layer: Layer, x: np.ndarray, gate: np.ndarray, up: np.ndarray, share: float) -> np.ndarray:
    made = layer.hidden(x, layer.base)
    return top(np.abs(made[0] * made[1]) * layer.norms, share)


def _of_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of this rank."""
    _, vectors = np.linalg.eigh(matrix.T @ matrix)
    return (matrix @ vectors[:, -rank:]) @ vectors[:, -rank:].T


CHOOSING = {"oracle": _oracle, "CATS": _cats, "CHESS": _chess, "CoreInfer": _core, "GRIFFIN": _griffin,
            "low rank": _low_rank, "base": _base, "base, refined": _base}
COLUMNS = ("TEAL", "WINA", "R-Sparse")
WAYS = ("oracle", "CATS", "CHESS", "TEAL", "WINA", "R-Sparse", "CoreInfer", "GRIFFIN", "low rank", "base",
        "base, refined")


def _by_columns(way: str, layer: Layer, x: np.ndarray, share: float) -> np.ndarray:
    """The feed-forward part with some inputs of each matrix."""
    def product(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        norms = 1.0 if way == "TEAL" else np.linalg.norm(matrix, axis=0)
        kept = np.where(top(np.abs(values) * norms, share), values, 0)
        made = kept @ matrix.T
        if way == "R-Sparse":
            small = matrix if matrix.shape[1] <= matrix.shape[0] else matrix.T
            low = _of_rank(small, round(RANK * x.shape[1]))
            made += (values - kept) @ (low.T if small is matrix else low)
        return made

    assert layer.weights.gate is not None
    hidden = layer.act(product(x, layer.weights.gate)) * product(x, layer.weights.up)
    return product(hidden, layer.weights.down)


class Predictors(Calibration):
    """A calibration pass that goes through the model with every way at once: the calibration text's windows first, then
    for each (way, share) the windows of the texts, and before all of them once more with nothing left out."""

    def __init__(self, weights: BundleWeights, calibrating: np.ndarray, windows: np.ndarray,
                 cases: Sequence[tuple[str, float]], progress: Callable[[int], None]) -> None:
        self._of_bundle, self._cases, self._texts = weights, cases, windows
        self._calibrating = len(calibrating) * calibrating.shape[1]
        every = np.concatenate([calibrating, *[windows] * (len(cases) + 1)])
        self.losses = np.zeros((len(cases) + 1, len(windows), windows.shape[1] // 2 - 1))
        """In nats, of each case, window and token that is scored; case 0 leaves nothing out."""
        self.recalled, self.computed = (np.zeros((len(cases), weights.header.config.num_hidden_layers))
                                        for _ in range(2))
        super().__init__(weights.source(), every, set(), progress)

    def run(self) -> None:
        while self._steps:
            self._run()

    def _of_neurons(self, x: Vectors, layer: int, out: Vectors, add_to: Vectors | None) -> None:
        act = ACTIVATIONS[self._source.config.hidden_act]
        whole, base = (self._of_bundle.read_layer(layer, base=only) for only in (False, True))
        windows, tokens = self._texts.shape
        made = np.empty((len(x.values), whole.down.shape[0]), np.float32)
        first, of_calibration = self._calibrating, x.values[:self._calibrating]
        gates, ups = act(of_calibration @ whole.gate.T), of_calibration @ whole.up.T  # type: ignore[union-attr]
        made[:first] = (gates * ups) @ whole.down.T

        cases = x.values[first:].reshape(-1, windows, tokens, x.values.shape[1])
        results = made[first:].reshape(-1, windows, tokens, made.shape[1])
        exact = cases[0].reshape(-1, cases.shape[-1])
        hidden = act(exact @ whole.gate.T) * (exact @ whole.up.T)  # type: ignore[union-attr]
        results[0] = (hidden @ whole.down.T).reshape(results[0].shape)
        prompts = np.abs(hidden.reshape(windows, tokens, -1)[:, :tokens // 2])
        results[1:, :, :tokens // 2] = results[0, :, :tokens // 2]
        about = Layer(act, whole, base, of_calibration, gates, ups, prompts)
        for number, (way, share) in enumerate(self._cases):
            of_case = cases[number + 1, :, tokens // 2:].reshape(-1, cases.shape[-1])
            results[number + 1, :, tokens // 2:] = self._computed(
                about, layer, number, way, share, of_case).reshape(windows, tokens - tokens // 2, -1)
        out.values = made if add_to is None else add_to.values + made
        self._go_through(sum(matrix.size for matrix in whole if matrix is not None))

    def _computed(self, about: Layer, layer: int, number: int, way: str, share: float, x: np.ndarray) -> np.ndarray:
        if way in COLUMNS:
            self.recalled[number, layer], self.computed[number, layer] = np.nan, share
            return _by_columns(way, about, x, share)
        gate, up = about.hidden(x)
        hidden = gate * up
        mask = CHOOSING[way](about, x, gate, up, share)
        wanted = _oracle(about, x, gate, up, share)
        self.recalled[number, layer], self.computed[number, layer] = (mask & wanted).sum() / wanted.sum(), mask.mean()
        made: np.ndarray = np.where(mask, hidden, 0) @ about.weights.down.T
        if way == "base, refined":
            coarse = about.hidden(x, about.base)
            made += np.where(mask, 0, coarse[0] * coarse[1]) @ about.base.down.T
        return made

    def logits(self, x: Vectors, norm: str, head: str, *, norm_bias: str | None = None, centered: bool = False,
               head_bias: str | None = None) -> None:
        h = self.norm(x, norm, bias=norm_bias, centered=centered)
        self._count([head + ".weight"])
        config = self._source.config

        def step() -> None:
            windows, tokens = self._texts.shape
            scored = h.values[self._calibrating:].reshape(-1, windows, tokens, h.values.shape[1])
            rows = scored[:, :, tokens // 2:-1].reshape(-1, h.values.shape[1]) * np.float32(config.logit_scale)
            targets = np.tile(self._texts[:, tokens // 2 + 1:].reshape(-1), len(scored))
            most, total, of_target = (np.full(len(rows), start, np.float64) for start in (-np.inf, 0, 0))
            bias = None if head_bias is None else self._vector(head_bias)
            first = 0
            for part in self._parts(head + ".weight"):
                logits = rows @ part.T
                if bias is not None:
                    logits += bias[first:first + len(part)]
                if (cap := config.logit_softcap) is not None:
                    logits = np.float32(cap) * np.tanh(logits / np.float32(cap))
                here = np.flatnonzero((targets >= first) & (targets < first + len(part)))
                of_target[here] = logits[here, targets[here] - first]
                largest = np.maximum(most, logits.max(1))
                total = total * np.exp(most - largest) + np.exp(logits - largest[:, None]).sum(1)
                most, first = largest, first + len(part)
            self.losses[:] = (most + np.log(total) - of_target).reshape(self.losses.shape)

        self._steps.append(step)


def bytes_read(weights: BundleWeights, way: str, share: float, computed: float) -> tuple[float, float]:
    """Of all layers' feed-forward parts, for a token: bytes that are read of the weights it is computed with, and bytes
    that only the guess is made of, which stay in memory. A predictor of its own has 8 bits a weight."""
    read = guess = 0.0
    config = weights.header.config
    for n in weights.header.neurons:
        of_row, of_column = (FORMATS[name].block_bytes / (TILE * 32) for name in (n.gate_up, n.down))
        sizes = config.hidden_size * config.intermediate_size
        gate_up, down = 2 * sizes * of_row, sizes * of_column
        base, detail = (sizes * sum(count * getattr(FORMATS[name], plane) / (TILE * 32)
                                    for count, name in ((2, n.gate_up), (1, n.down)))
                        for plane in ("base_bytes", "detail_bytes"))
        ranks = RANK * config.hidden_size * 3 * (config.hidden_size + config.intermediate_size)
        if way in ("CATS", "CHESS"):
            read += gate_up / 2 + computed * (gate_up / 2 + down)
        elif way == "base, refined":
            read, guess = read + computed * detail, guess + base
        else:
            read += computed * (gate_up + down)
            if way == "base":
                guess += sizes * 2 * FORMATS[n.gate_up].base_bytes / (TILE * 32)
                read -= computed * sizes * 2 * FORMATS[n.gate_up].base_bytes / (TILE * 32)
            elif way in ("low rank", "R-Sparse"):
                guess += ranks * (2 / 3 if way == "low rank" else 1)
    return read, guess


def compare(bundle: Bundle, texts: Mapping[str, str], shares: Sequence[float], max_tokens: int | None,
            progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """The table: `dense`, perplexity by text; `ways`, of each its way, share, computed (the share that it did compute),
    recall (the share of the oracle's neurons that it chose; None for columns), read and guess (`bytes_read`),
    perplexity and loss by text. Raises SourceError for a model that this is not for, and texts that are too short."""
    weights = BundleWeights(bundle)
    if any(part.gate is None for part in weights.parts):
        raise SourceError(f"{bundle.path}: its feed-forward parts have no gate; predictors are compared where there is "
                          "one")
    source = weights.source()
    tokenizer = Tokenizer.from_str(source.tokenizer_json)
    windows, whose = [], []
    for name, text in texts.items():
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids[:max_tokens], np.int64)
        found = ids[:len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        if not len(found):
            raise SourceError(f"{name}: has {len(ids)} tokens; predictors are compared on windows of {WINDOW}, so give "
                              "a longer text")
        windows.append(found)
        whose += [name] * len(found)
    every, bos = np.concatenate(windows), source.generation.get("bos_token_id")
    if source.generation.get("add_bos_token") and bos is not None:
        every[:, 0] = bos
    calibrating = shipped_windows(source)
    if calibrating is None:
        raise SourceError(f"{bundle.path}: the calibration text has no window of {WINDOW} of its tokens")
    cases = [(way, share) for way in WAYS for share in shares]
    done = 0

    def gone_through(count: int) -> None:
        nonlocal done
        done += count
        progress(done, run.weights)

    with np.errstate(all="ignore"):
        run = Predictors(weights, calibrating[:CALIBRATED], every, cases, gone_through)
        run.run()
    means = {name: run.losses[:, [at for at, of in enumerate(whose) if of == name]].mean((1, 2)) for name in texts}
    ways = []
    for number, (way, share) in enumerate(cases):
        computed = float(run.computed[number].mean())
        read, guess = bytes_read(weights, way, share, computed)
        recall = float(run.recalled[number].mean())
        ways.append({"way": way, "share": share, "computed": round(computed, 4),
                     "recall": None if math.isnan(recall) else round(recall, 4), "read": round(read),
                     "guess": round(guess),
                     "perplexity": {name: float(np.exp(mean[number + 1])) for name, mean in means.items()},
                     "loss": {name: float(np.expm1(mean[number + 1] - mean[0])) for name, mean in means.items()}})
    feed_forward, _ = bytes_read(weights, "oracle", 1.0, 1.0)
    return {"texts": list(texts), "tokens": {name: whose.count(name) * (WINDOW // 2 - 1) for name in texts},
            "feed_forward": round(feed_forward), "ways": ways,
            "dense": {name: float(np.exp(mean[0])) for name, mean in means.items()}}
