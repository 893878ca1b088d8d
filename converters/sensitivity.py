"""Sensitivity: what it costs, at the end, to have a matrix in fewer bits.

A short text, which no weight is calibrated with, goes through the source model, and with it a copy of it for each group
of matrices that one format is chosen for: what becomes of the text where these alone are rounded to 3 bits. All copies
go on together from where they part, so that each weight is read once. What counts is how far the distribution of the
next token moves: the Kullback-Leibler divergence from the source's, over the tokens that are likely anywhere in the
text. Other formats are taken to cost as much more or less as the squares of their errors in what the matrices give are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgert.kernels.formats import FORMATS, TILE, unpack
from edgert.models.tensors import Role, TensorSpec

from .activations import ACTIVATIONS
from .calibration import Calibration, State, Vectors
from .importance import Importance
from .quantizer import on_grid, packed
from .source import Grid, Source, SourceTensor

WINDOW, _FIRST = 80, 16
"""Tokens of each text, and how many of them only make a beginning."""
_LIKELIEST = 24
"""How many tokens are looked at for each token of the text, and for all others."""
_EVERY = 8
"""Every so manieth tile of rows is rounded to all formats."""
_VALUES_AT_ONCE = 8 << 20
"""Weights read at a time, and values computed with them: 32 MB as float32."""
FEWER = ("q2", "q3", "q4", "q6")
"""The formats to choose from, by size."""
_CARRIED = "q3"
_FINER = {"q2": "q3", "q3": "q4", "q4": "q6", "q6": "q6"}
"""What values have where queries and keys have this: few bytes that cost much."""
_TOGETHER = {Role.QUERY: "qkv", Role.KEY: "qkv", Role.VALUE: "qkv", Role.GATE: "rows", Role.UP: "rows"}


@dataclass(eq=False)
class Part:
    """Matrices that get one format, but for values, which get the next finer.

    losses: the divergence to expect, in nats a token, by format.
    """

    specs: list[TensorSpec]
    losses: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FEWER, 0.0))

    def formats(self, chosen: str) -> dict[str, str]:
        """What each of its matrices gets."""
        return {spec.name: _format_of(spec, chosen) for spec in self.specs}

    def bytes(self, chosen: str) -> int:
        """What they take, but for what their sections are filled up with."""
        return sum(FORMATS[_format_of(spec, chosen)].matrix_bytes(*spec.shape) for spec in self.specs)


def _format_of(spec: TensorSpec, chosen: str) -> str:
    return _FINER[chosen] if spec.role is Role.VALUE else chosen


def parts_of(specs: Sequence[TensorSpec]) -> list[Part]:
    """Matrices, in the order of use, by what gets one format: a layer's queries, keys and values; its gate and up."""
    found: dict[tuple[int | None, str], Part] = {}
    for spec in specs:
        found.setdefault((spec.layer, _TOGETHER.get(spec.role, spec.name)), Part([])).specs.append(spec)
    return list(found.values())


def judging_windows(source: Source) -> np.ndarray | None:
    """The beginnings of the two texts in `judging.txt`: token ids, int64 of shape (2, WINDOW), each beginning with BOS
    where the model wants one; None where a tokenizer makes fewer tokens of them."""
    texts = files(__package__).joinpath("judging.txt").read_text(encoding="utf-8").split("\n\n", 1)
    tokenizer = Tokenizer.from_str(source.tokenizer_json)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids[:WINDOW] for text in texts]
    if min(map(len, ids)) < WINDOW:
        return None
    windows = np.array(ids, np.int64)
    bos = source.generation.get("bos_token_id")
    if source.generation.get("add_bos_token") and bos is not None:
        windows[:, 0] = bos
    return windows


@dataclass(frozen=True)
class Measured:
    """How far parts are measured.

    gone: through the model, with the text and its copies. copied: the numbers of the parts that these are of. errors:
    of each part the square errors until now, by FEWER.
    """

    gone: State
    copied: list[int]
    errors: list[list[float]]


class Sensitivity(Calibration):
    """What the formats of parts cost.

    windows: of `judging_windows`. importance_of(name): what is known of a matrix's columns, asked once for each matrix
    of the parts in the order of use, but not for the embedding. progress(weights) as of Calibration.
    """

    def __init__(self, source: Source, windows: np.ndarray, parts: Sequence[Part],
                 importance_of: Callable[[str], Importance | None],
                 progress: Callable[[int], None] = lambda weights: None) -> None:
        self._importance_of, self._size = importance_of, 0
        self._part_of = {spec.name: (part, spec) for part in parts for spec in part.specs}
        self._copied: list[Part] = []
        """Whose copies there are, in order, behind the text as the source computes it."""
        self._errors: dict[Part, dict[str, float]] = {part: dict.fromkeys(FEWER, 0.0) for part in parts}
        """The square error of what its matrices give, of the rows looked at, by format."""
        super().__init__(source, windows, set(), progress)
        self._size = self._windows.size

    def measure(self, keep: Callable[[], None] = lambda: None) -> None:
        """Fill in the losses of all parts. keep: called where that may be interrupted. Raises SourceError."""
        with np.errstate(all="ignore"):  # what is not finite is no loss that anything could be said of
            while self._steps:
                self._run()
                if self._steps:
                    keep()
        for part in self._errors:
            least = 0.0
            for form in reversed(FEWER):
                least = part.losses[form] = max(least, float(np.nan_to_num(part.losses[form], posinf=1e9)))

    def measured(self) -> Measured:
        """What to `go_on_from` in another process, with the same parts."""
        state, numbers = self.state(), {part: number for number, part in enumerate(self._errors)}
        assert state is not None
        return Measured(state, [numbers[part] for part in self._copied],
                        [[errors[form] for form in FEWER] for errors in self._errors.values()])

    def go_on_from(self, measured: Measured) -> None:
        """Be where another one was that had measured this."""
        self.go_on(measured.gone)
        parts = list(self._errors)
        self._copied = [parts[number] for number in measured.copied]
        for part, errors in zip(parts, measured.errors, strict=True):
            self._errors[part] = dict(zip(FEWER, errors, strict=True))

    # The operations of models.network.Network, each on the text and its copies.

    def embedding(self, weight: str, *, scale: float = 1.0) -> Vectors:
        x = super().embedding(weight, scale=scale)

        def step() -> None:
            if weight in self._part_of:
                part, _ = self._part_of[weight]
                ids, places = np.unique(self._windows, return_inverse=True)
                values, grids = self._rows(weight, ids)
                errors = {form: _rounded(values, grids(form), form, None) - values for form in FEWER}
                for form in FEWER:
                    self._errors[part][form] += float(np.square(errors[form][places.reshape(-1)]).sum())
                change = errors[_CARRIED][places.reshape(-1)] * np.float32(scale)
                self._give(x, x.values, [(part, x.values + change)], None)

        self._steps.append(step)
        return x

    def _linear(self, x: Vectors, names: Sequence[str], out: Vectors, add_to: Vectors | None, *, bias: bool) -> None:
        made, changes = zip(*(self._products(x.values, name + ".weight") for name in names), strict=True)
        whole = np.concatenate(made, 1)
        if bias:
            whole += np.concatenate([self._vector(name + ".bias") for name in names])
        copies: dict[Part, np.ndarray] = {}
        first = 0
        for name, values, change in zip(names, made, changes, strict=True):
            if change is not None:
                part = self._part_of[name + ".weight"][0]
                copy = copies.setdefault(part, whole[:self._size].copy())
                copy[:, first:first + values.shape[1]] += change
            first += values.shape[1]
        self._give(out, whole, list(copies.items()), add_to)

    def _of_neurons(self, x: Vectors, layer: int, out: Vectors, add_to: Vectors | None) -> None:
        part, act = self._feed_forward[layer], ACTIVATIONS[self._source.config.hidden_act]
        by_rows, down = [spec.name for spec in part.by_rows], part.down.name
        bias = None if part.up_bias is None else self._vector(part.up_bias.name)
        judged = by_rows[0] in self._part_of
        weights = self._source.tensors[down].read(0, part.down.shape[0])
        made = np.zeros((len(x.values), part.down.shape[0]), np.float32)
        first, hidden, changed = 0, [], []

        def acted(products: Sequence[np.ndarray]) -> np.ndarray:
            only = products[0] if bias is None else products[0] + bias[first:first + products[0].shape[1]]
            active = act(only)
            return active if part.gate is None else active * products[1]

        for some in zip(*(self._parts_of_products(x.values, name) for name in by_rows), strict=True):
            products = [values for values, _ in some]
            active = acted(products)
            made += active @ weights[:, first:first + active.shape[1]].T
            hidden.append(active[:self._size])
            if judged:
                changed.append(acted([values[:self._size] + change for values, change in some]))
            first += active.shape[1]
        copies = []
        if judged:
            copies.append((self._part_of[by_rows[0]][0], np.concatenate(changed, 1) @ weights.T))
        _, change = self._products(np.concatenate(hidden, 1), down)
        if change is not None:
            copies.append((self._part_of[down][0], made[:self._size] + change))
        if part.down_bias is not None:
            for values in [made, *(copy for _, copy in copies)]:
                values += self._vector(part.down_bias.name)
        self._give(out, made, copies, add_to)

    def add(self, y: Vectors, *, to: Vectors, norm: str | None = None, scale: float = 1.0) -> None:
        def step() -> None:
            made = (y.values if norm is None else self._normed(y.values, norm)) * np.float32(scale)
            self._give(to, made, [], to)

        self._steps.append(step)

    def logits(self, x: Vectors, norm: str, head: str, *, norm_bias: str | None = None, centered: bool = False,
               head_bias: str | None = None) -> None:
        h, name = self.norm(x, norm, bias=norm_bias, centered=centered), head + ".weight"
        self._count([name])

        def step() -> None:
            scored = np.flatnonzero(np.arange(self._size) % self._windows.shape[1] >= _FIRST)
            bias = None if head_bias is None else self._vector(head_bias)
            ids = self._likeliest(h.values[scored], name, bias)
            values, grids = self._rows(name, ids)
            offset = np.float32(0) if bias is None else bias[ids]

            def logits(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
                found = np.float32(self._source.config.logit_scale) * (vectors @ weights.T + offset)
                cap = self._source.config.logit_softcap
                found = found if cap is None else np.float32(cap) * np.tanh(found / np.float32(cap))
                found = found - found.max(1, keepdims=True)
                return found - np.log(np.exp(found).sum(1, keepdims=True))

            source = logits(h.values[scored], values)

            def divergence(vectors: np.ndarray, weights: np.ndarray) -> float:
                return float((np.exp(source) * (source - logits(vectors, weights))).sum(1).mean())

            for number, part in enumerate(self._copied, 1):
                found, errors = divergence(h.values[number * self._size + scored], values), self._errors[part]
                for form in FEWER:
                    if errors[_CARRIED] > 0:
                        part.losses[form] += found * errors[form] / errors[_CARRIED]
            if name in self._part_of:
                part, spec = self._part_of[name]
                importance = self._importance_of(name) if spec.role is Role.HEAD else None
                for form in FEWER:
                    part.losses[form] += divergence(h.values[scored], _rounded(values, grids(form), form, importance))

        self._steps.append(step)

    # What they are made of.

    def _give(self, out: Vectors, made: np.ndarray, copies: Sequence[tuple[Part, np.ndarray]],
              add_to: Vectors | None) -> None:
        """Have `out` be what was made of the text and its copies until now, or its sum with `add_to`, and of new
        copies. What there is no copy of in either is as it is without."""
        rows = (1 + len(self._copied)) * self._size
        if copies:
            made = np.concatenate([self._extended(made, rows), *(copy for _, copy in copies)])
            self._copied += [part for part, _ in copies]
        if add_to is not None:
            rows = max(len(made), len(add_to.values))
            made = self._extended(made, rows) + self._extended(add_to.values, rows)
        out.values = made

    def _extended(self, values: np.ndarray, rows: int) -> np.ndarray:
        missing = (rows - len(values)) // self._size
        return np.concatenate([values, np.tile(values[:self._size], (missing, 1))]) if missing else values

    def _products(self, x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Of all of x with a matrix, and how those of the text differ where it is rounded, if there is a choice."""
        made, changes = zip(*self._parts_of_products(x, name), strict=True)
        return np.concatenate(made, 1), None if changes[0] is None else np.concatenate(changes, 1)

    def _parts_of_products(self, x: np.ndarray, name: str) -> Iterator[tuple[np.ndarray, Any]]:
        """The same, some rows of the matrix at a time."""
        tensor = self._source.tensors[name]
        rows, columns = tensor.shape
        at_once = max(_VALUES_AT_ONCE // max(columns, len(x)) // TILE, 1) * TILE
        importance = self._importance_of(name) if name in self._part_of else None
        for start in range(0, rows, at_once):
            stop = min(start + at_once, rows)
            values, change = tensor.read(start, stop), None
            if name in self._part_of:
                change = self._change(x[:self._size], tensor, values, start, importance, *self._part_of[name])
            yield x @ values.T, change
            self._go_through((stop - start) * columns)

    def _change(self, x: np.ndarray, tensor: SourceTensor, values: np.ndarray, start: int,
                importance: Importance | None, part: Part, spec: TensorSpec) -> np.ndarray:
        """What rounding rows of a matrix changes in the products of x; and note what other formats would."""
        stop = start + len(values)
        carried, some = _format_of(spec, _CARRIED), np.arange(start, stop) // TILE % _EVERY == 0
        grid = {form: tensor.grid(start, stop) for form in (*FEWER, "q6") if on_grid(tensor, form)}
        if some.any():
            for form in FEWER:
                used = _format_of(spec, form)
                of_some = (on := grid.get(used)) and Grid(on.scale[some], on.minimum[some], on.top)
                error = _rounded(values[some], of_some, used, importance) - values[some]
                self._errors[part][form] += float(np.square(x @ error.T).sum())
        return x @ (_rounded(values, grid.get(carried), carried, importance) - values).T

    def _rows(self, name: str, ids: np.ndarray) -> tuple[np.ndarray, Callable[[str], Grid | None]]:
        """Some rows of a matrix, and the grid that they stand on, if a format keeps it."""
        tensor = self._source.tensors[name]

        def grid(form: str) -> Grid | None:
            if not on_grid(tensor, form):
                return None
            found = [tensor.grid(int(i), int(i) + 1) for i in ids]
            there = [one for one in found if one is not None]
            return Grid(np.concatenate([one.scale for one in there]), np.concatenate([one.minimum for one in there]),
                        there[0].top)

        return np.concatenate([tensor.read(int(i), int(i) + 1) for i in ids]), grid

    def _likeliest(self, h: np.ndarray, name: str, bias: np.ndarray | None) -> np.ndarray:
        """The ids of the tokens that are likeliest after any of h, in order."""
        best, ids, first = np.empty((len(h), 0), np.float32), np.empty((len(h), 0), np.int64), 0
        for values in self._parts(name):
            numbers = np.arange(first, first + len(values))
            found = h @ values.T + (0 if bias is None else bias[numbers])
            best = np.concatenate([best, found], 1)
            ids = np.concatenate([ids, np.tile(numbers, (len(h), 1))], 1)
            kept = np.argsort(-best, 1, kind="stable")[:, :_LIKELIEST]
            best, ids = np.take_along_axis(best, kept, 1), np.take_along_axis(ids, kept, 1)
            first += len(values)
        return np.unique(ids)


def _rounded(values: np.ndarray, grid: Grid | None, form: str, importance: Importance | None) -> np.ndarray:
    """Rows of a matrix as they come back from a format: float32."""
    return unpack(FORMATS[form], packed(FORMATS[form], values, grid, importance))[:values.shape[0], :values.shape[1]]
