"""Calibration: what a model's matrices get to see, so that rounding them costs least where it matters.

A few thousand tokens of text go through the source model in float32, layer by layer, each weight read once and in
parts. Of the inputs of a matrix their second moments are kept: means over tokens of x_i * x_j, or, for down projections
and what is very wide, of x_i * x_i, as llama.cpp's importance matrix does. The text is the user's own
(calibration_text.py), or `calibration.txt`: prose, code and conversation in several languages, written for this; no
text that a model is judged by belongs in it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import NamedTuple
from weakref import ref

import numpy as np

from edgert.bundle.header import predictor_rank
from edgert.errors import SourceError
from edgert.models.expert_config import Config as ExpertConfig
from edgert.models.families import FAMILIES
from edgert.models.tensors import Role, feed_forward_parts

from .activations import ACTIVATIONS, CLAMP
from .left_out import Trials
from .predictor import Predictor, fitted
from .source import Source

WHOLE = 4096
"""Up to so many columns all products are kept (64 MB as float32), for more only squares."""
_VALUES_AT_ONCE = 4 << 20
"""Weights read at a time, and values computed with them: 16 MB as float32."""


LeaveOut = Callable[[np.ndarray, np.ndarray, Predictor, tuple[int, int]], None]


class Vectors:
    """A vector for each token, float32 of shape (tokens, size), once it is computed."""

    values: np.ndarray


class State(NamedTuple):
    """How far a calibration is: the steps that have run, the weights gone through, and the activations that steps to
    come need, by number."""

    steps: int = 0
    weights: int = 0
    values: Mapping[int, np.ndarray] = {}


class Calibration:
    """The second moments of the inputs of the matrices named in `wanted`, computed as far as they are asked for.

    Implements models.network.Network: a family's `wire` records steps, which run when something after them is wanted.
    windows: token ids, (windows, tokens in each). progress(weights) is called when so many more have been gone through.
    thresholds: also measure what it costs to leave out experts, or neurons, below each (left_out.py). in_units: of the
    latter, for each layer how many neurons are in a unit, as `Trials.predicting` takes it.
    """

    def __init__(self, source: Source, windows: np.ndarray, wanted: Set[str],
                 progress: Callable[[int], None] = lambda weights: None, thresholds: Sequence[float] = (),
                 in_units: Sequence[tuple[int, int]] = ()) -> None:
        self._source, self._wanted, self._progress = source, wanted, progress
        self._steps: deque[Callable[[], None]] = deque()
        self._ran = self._gone = 0
        """Steps that have run, and weights gone through."""
        self._activations: list[ref[Vectors]] = []
        """Those of all steps; there are still those that steps to come need."""
        self._moments: dict[str, np.ndarray] = {}
        self.weights = 0
        """How many weights are gone through in all."""
        self._feed_forward = feed_forward_parts(source.config.tensors(), sparse=source.config.sparse)
        self._routers = {spec.layer: spec.name for spec in source.config.tensors() if spec.role is Role.ROUTER}
        self._active: dict[int, np.ndarray] = {}
        self._predictors: dict[int, Predictor] = {}
        self._leaving_out: dict[int, LeaveOut] = {}
        """Of sparse layers whose neurons are to be predicted, what leaves them out."""
        self._in_units = in_units
        windows = windows[:, :source.config.max_position_embeddings]  # learned positions have no more
        self._trials = Trials(thresholds, windows, self._activation)
        self._windows = self._trials.windows
        self._rotations = [_rotations(frequencies, source.config.rope_attention_factor, self._windows.shape[1])
                           for frequencies in source.config.rope_tables()]
        FAMILIES[source.config.architecture].wire(source.config, self)

    def moments(self, name: str) -> np.ndarray:
        """Of the input x of a wanted matrix: the mean of x_i * x_j, float32 of shape (columns, columns), or of
        x_i * x_i, of shape (columns,). To be asked for once, in the order in which the model uses its matrices.
        Raises SourceError."""
        with np.errstate(all="ignore"):  # what is not finite is for the caller to see
            while name not in self._moments:
                self._run()
        return self._moments.pop(name)

    def active(self, layer: int) -> np.ndarray:
        """Which neurons of a sparse layer were not zero, or which experts a token has: bool of shape (tokens, neurons)
        or (tokens, experts). To be asked for once, before what the next layer uses. Raises SourceError."""
        with np.errstate(all="ignore"):
            while layer not in self._active:
                self._run()
        return self._active.pop(layer)

    def predictor(self, layer: int) -> Predictor:
        """A sparse layer's, where what it costs to leave out neurons is measured. To be asked for once, after `active`.
        """
        return self._predictors.pop(layer)

    def left_out_losses(self) -> list[list[float]]:
        """The curve of left_out.py. To be asked for last. Raises SourceError."""
        with np.errstate(all="ignore"):
            while self._steps:
                self._run()
        return self._trials.curve(self._source.config)

    def state(self) -> State | None:
        """What to `go_on` with in another process, after the same that was asked for until now; None while something is
        computed that has not been asked for."""
        if self._moments or self._active or self._predictors:
            return None
        there = ((number, found()) for number, found in enumerate(self._activations))
        values = {number: x.values for number, x in there if x is not None and hasattr(x, "values")}
        return State(self._ran, self._gone, values)

    def go_on(self, state: State) -> None:
        """Be where another one was that gave this as its state."""
        for _ in range(state.steps):
            self._steps.popleft()
        self._ran, self._gone = state.steps, state.weights
        for number, values in state.values.items():
            if (x := self._activations[number]()) is not None:
                x.values = values.copy()

    def run(self) -> None:
        """Run the next step, of which there must be one. Raises SourceError."""
        with np.errstate(all="ignore"):
            self._run()

    def _run(self) -> None:
        self._steps.popleft()()
        self._ran += 1

    # The operations of models.network.Network.

    def embedding(self, weight: str, *, scale: float = 1.0) -> Vectors:
        x = self._activation()

        def step() -> None:
            tensor = self._source.tensors[weight]
            ids, places = np.unique(self._windows, return_inverse=True)
            x.values = np.concatenate([tensor.read(int(i), int(i) + 1) for i in ids])[places.reshape(-1)]
            x.values *= np.float32(scale)

        self._steps.append(step)
        return x

    def add_positions(self, x: Vectors, weight: str, *, first: int) -> None:
        def step() -> None:
            tokens = self._windows.shape[1]
            x.values += np.tile(self._source.tensors[weight].read(first, first + tokens), (len(x.values) // tokens, 1))

        self._steps.append(step)

    def norm(self, x: Vectors, weight: str, *, bias: str | None = None, centered: bool = False) -> Vectors:
        out = self._activation()

        def step() -> None:
            center = centered or bias is not None
            out.values = self._normed(x.values - x.values.mean(1, keepdims=True) if center else x.values, weight)
            if bias is not None:
                out.values += self._vector(bias)

        self._steps.append(step)
        return out

    def plain(self, x: Vectors) -> Vectors:
        return x

    def linear(self, x: Vectors, names: Sequence[str], *, bias: bool = False,
               add_to: Vectors | None = None) -> Vectors:
        out = self._activation() if add_to is None else add_to
        self._count([name + ".weight" for name in names])
        self._steps.append(lambda: self._linear(x, names, out, add_to, bias=bias))
        return out

    def _linear(self, x: Vectors, names: Sequence[str], out: Vectors, add_to: Vectors | None, *, bias: bool) -> None:
        """The step of `linear`."""
        self._observe(x.values, [name + ".weight" for name in names])
        made = np.concatenate([np.concatenate([x.values @ part.T for part in self._parts(name + ".weight")], 1)
                               for name in names], 1)
        if bias:
            made += np.concatenate([self._vector(name + ".bias") for name in names])
        out.values = made if add_to is None else add_to.values + made

    def head_norms(self, qkv: Vectors, query_weight: str, key_weight: str, *, whole: bool = False) -> None:
        c = self._source.config

        def step() -> None:
            first = 0
            for size, weight in ((c.query_size, query_weight), (c.key_value_size, key_weight)):
                part = qkv.values[:, first:first + size]
                heads = part.reshape(-1, size if whole else c.head_dim)
                part[:] = self._normed(heads, weight).reshape(part.shape)
                first += size

        self._steps.append(step)

    def head_layer_norms(self, qkv: Vectors, query_weight: str, key_weight: str) -> None:
        c = self._source.config

        def step() -> None:
            weights = np.concatenate([self._vector(query_weight), self._vector(key_weight)]).reshape(-1, c.head_dim)
            part = qkv.values[:, :weights.size]
            heads = part.reshape(-1, *weights.shape)
            heads = heads - heads.mean(2, keepdims=True)
            size = np.sqrt(np.square(heads).mean(2, keepdims=True) + np.float32(c.norm_epsilon))
            part[:] = (heads / size * weights).reshape(part.shape)

        self._steps.append(step)

    def attention(self, qkv: Vectors, layer: int, *, sinks: str | None = None) -> Vectors:
        out, c = self._activation(), self._source.config
        sizes = np.cumsum([0, c.query_size, c.key_value_size, c.key_value_size])
        tokens = self._windows.shape[1]
        unseen = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        if (window := c.window(layer)) is not None:
            unseen += np.tril(np.full((tokens, tokens), -np.inf, np.float32), -window)

        def step() -> None:
            out.values = np.empty((len(qkv.values), c.query_size), np.float32)
            sink = np.full(c.num_attention_heads, -np.inf, np.float32) if sinks is None else self._vector(sinks)
            for start in range(0, len(qkv.values), tokens):
                window = qkv.values[start:start + tokens]
                q, k, v = (window[:, first:last].reshape(tokens, -1, c.head_dim).transpose(1, 0, 2)
                           for first, last in pairwise(sizes))
                if (table := c.rope_table(layer)) is not None:
                    q, k = (self._rotated(part, *self._rotations[table]) for part in (q, k))
                    if (scales := c.query_scales(np.arange(tokens))) is not None:
                        q = q * scales[:, None].astype(np.float32)
                share = c.num_attention_heads // c.num_key_value_heads
                for head in range(c.num_attention_heads):
                    scores = q[head] @ k[head // share].T * np.float32(c.attention_scale)
                    if (cap := c.attention_softcap) is not None:
                        scores = np.float32(cap) * np.tanh(scores / np.float32(cap))
                    scores += unseen
                    most = np.maximum(scores.max(1, keepdims=True), sink[head])
                    scores = np.exp(scores - most)
                    out.values[start:start + tokens, head * c.head_dim:(head + 1) * c.head_dim] = (
                        scores / (scores.sum(1, keepdims=True) + np.exp(sink[head] - most))) @ v[head // share]

        self._steps.append(step)
        return out

    def feed_forward(self, x: Vectors, layer: int, *, add_to: Vectors | None = None) -> Vectors:
        out = self._activation() if add_to is None else add_to
        part = self._feed_forward[layer]
        self._count([spec.name for spec in part.matrices])
        if part.deciding is not None and self._trials:
            self._count([part.deciding.name])  # to fit its predictor
            self._leaving_out[layer] = self._trials.predicting()
        self._steps.append(lambda: self._of_neurons(x, layer, out, add_to))
        return out

    def _of_neurons(self, x: Vectors, layer: int, out: Vectors, add_to: Vectors | None) -> None:
        """The step of `feed_forward`."""
        part, act = self._feed_forward[layer], ACTIVATIONS[self._source.config.hidden_act]
        by_rows, down = [spec.name for spec in part.by_rows], part.down.name
        self._observe(x.values, by_rows)
        hidden = np.empty((len(x.values), self._source.config.intermediate_size), np.float32)
        bias = None if part.up_bias is None else self._vector(part.up_bias.name)
        leave_out = self._leaving_out.get(layer)
        fitting = self._trials.fitting if leave_out else np.empty(0, np.int64)
        products = np.empty((len(fitting), hidden.shape[1]), np.float32)
        first = 0
        for rows in zip(*map(self._parts, by_rows), strict=True):
            some = slice(first, first + len(rows[0]))
            made = x.values @ rows[0].T
            products[:, some] = made[fitting]
            if bias is not None:
                made += bias[some]
            made = act(made)
            if part.gate is not None:
                made *= x.values @ rows[1].T
            hidden[:, some] = made
            first = some.stop
        if part.sparse:
            self._active[layer] = hidden[:self._trials.observed] != 0
        if leave_out:
            if not np.isfinite(products).all():
                raise SourceError("predictors cannot be computed: of the calibration text the model makes what is no "
                                  "number; convert without --predictors")
            rank = predictor_rank(self._source.config)
            self._predictors[layer] = fitted(products, bias, self._parts(by_rows[0]), rank)
            del products
            leave_out(hidden, x.values, self._predictors[layer], self._in_units[layer])
        self._observe(hidden, [down], squares_alone=True)  # products gained nothing (docs/notes/presets.md)
        if add_to is None:
            out.values = np.zeros((len(x.values), part.down.shape[0]), np.float32)
        first = 0
        for rows in self._parts(down):
            out.values[:, first:first + len(rows)] += hidden @ rows.T
            first += len(rows)
        if part.down_bias is not None:
            out.values += self._vector(part.down_bias.name)

    def add(self, y: Vectors, *, to: Vectors, norm: str | None = None, scale: float = 1.0) -> None:
        def step() -> None:
            to.values += (y.values if norm is None else self._normed(y.values, norm)) * np.float32(scale)

        self._steps.append(step)

    def glu(self, gate_up: Vectors, columns: int, *, weighed: bool = False) -> Vectors:
        out, act = self._activation(), ACTIVATIONS[self._source.config.hidden_act]

        def step() -> None:
            made = gate_up.values
            out.values = act(made[:, :columns]) * self._beside_gate(made[:, columns:2 * columns])
            if weighed:
                out.values /= 1 + np.exp(-made[:, 2 * columns:])

        self._steps.append(step)
        return out

    def _beside_gate(self, up: np.ndarray) -> np.ndarray:
        """What a gate is multiplied by."""
        return np.clip(up, -CLAMP, CLAMP) + 1 if self._source.config.hidden_act == "clamped" else up

    def experts(self, x: Vectors, layer: int, *, add_to: Vectors, scale: float = 1.0,
                meanwhile: Callable[[], None] = lambda: None) -> None:
        c, router = self._source.config, self._routers[layer]
        part = self._feed_forward[layer - c.dense_layers]
        assert isinstance(c, ExpertConfig)
        act, names = ACTIVATIONS[c.hidden_act], [spec.name for spec in part.matrices]
        sizes = {router: 1, **dict(zip(names, (c.intermediate_size, c.intermediate_size, c.hidden_size), strict=True))}
        self._count([router, *names])
        meanwhile()
        chosen = self._trials.routing()

        def step() -> None:
            logits = np.concatenate([x.values @ rows.T for rows in self._parts(router)], 1)
            of_router, gate_bias, up_bias, down_bias = (
                (self._vector(name.removesuffix("weight") + "bias") if c.biases
                 else np.zeros(c.experts * size, np.float32)).reshape(c.experts, size) for name, size in sizes.items())
            logits += of_router[:, 0]
            weights, active = chosen(logits, c)
            self._active[layer] = active[:self._trials.observed]
            weights *= np.float32(scale)
            gate, up, down = (self._source.tensors[name] for name in names)
            for expert in range(c.experts):
                tokens = np.flatnonzero(active[:, expert])
                if len(tokens):
                    rows = expert * c.intermediate_size, (expert + 1) * c.intermediate_size
                    hidden = act(x.values[tokens] @ gate.read(*rows).T + gate_bias[expert])
                    hidden *= self._beside_gate(x.values[tokens] @ up.read(*rows).T + up_bias[expert])
                    rows = expert * c.hidden_size, (expert + 1) * c.hidden_size
                    add_to.values[tokens] += weights[tokens, expert, None] * (hidden @ down.read(*rows).T
                                                                              + down_bias[expert])
                self._go_through(3 * c.hidden_size * c.intermediate_size)

        self._steps.append(step)

    def logits(self, x: Vectors, norm: str, head: str, *, norm_bias: str | None = None, centered: bool = False,
               head_bias: str | None = None) -> None:
        h = self.norm(x, norm, bias=norm_bias, centered=centered)
        if self._trials:
            self._count([head + ".weight"])

        def step() -> None:
            self._observe(h.values, [head + ".weight"])
            if self._trials:
                bias = None if head_bias is None else self._vector(head_bias)
                self._trials.measure(h.values, self._parts(head + ".weight"), bias, self._source.config)

        self._steps.append(step)

    # What they are made of.

    def _activation(self) -> Vectors:
        made = Vectors()
        self._activations.append(ref(made))
        return made

    def _count(self, names: Sequence[str]) -> None:
        self.weights += sum(int(np.prod(self._source.tensors[name].shape)) for name in names)

    def _vector(self, name: str) -> np.ndarray:
        tensor = self._source.tensors[name]
        return tensor.read(0, tensor.shape[0])

    def _parts(self, name: str) -> Iterator[np.ndarray]:
        """A matrix, some rows at a time."""
        tensor = self._source.tensors[name]
        rows, columns = tensor.shape
        at_once = max(_VALUES_AT_ONCE // max(columns, self._windows.size), 1)
        for start in range(0, rows, at_once):
            stop = min(start + at_once, rows)
            yield tensor.read(start, stop)
            self._go_through((stop - start) * columns)

    def _go_through(self, weights: int) -> None:
        self._gone += weights
        self._progress(weights)

    def _observe(self, x: np.ndarray, names: Sequence[str], *, squares_alone: bool = False) -> None:
        """Keep the second moments of x for those of the matrices whose they are wanted of."""
        x = x[:self._trials.observed]
        if wanted := self._wanted & set(names):
            squares_alone |= x.shape[1] > WHOLE
            found = np.einsum("ti,ti->i", x, x) if squares_alone else x.T @ x
            self._moments |= dict.fromkeys(wanted, found / np.float32(len(x)))

    def _normed(self, values: np.ndarray, weight: str) -> np.ndarray:
        mean = np.square(values).mean(1, keepdims=True)
        return values / np.sqrt(mean + np.float32(self._source.config.norm_epsilon)) * self._vector(weight)

    def _rotated(self, heads: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
        """(heads, tokens, head_dim) at their rotary positions; components in an order that is the same for all."""
        dim, neighbours = self._source.config.rotary_dim, self._source.config.rotates_neighbours
        a, b = ((heads[..., 0:dim:2], heads[..., 1:dim:2]) if neighbours
                else (heads[..., :dim // 2], heads[..., dim // 2:dim]))
        return np.concatenate([a * cosine - b * sine, a * sine + b * cosine, heads[..., dim:]], 2)


def _rotations(frequencies: np.ndarray, factor: float, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary angles, times a factor, each float32 of shape (tokens, rotary_dim / 2)."""
    angles = np.arange(tokens)[:, None] * frequencies
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)
