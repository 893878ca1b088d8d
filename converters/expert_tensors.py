"""The matrices of experts as one tensor, one expert below the other, however a file has them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .gptoss_tensors import Vectors
from .rows import Rows
from .source import Grid, SourceTensor

_PARTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
_ONE = re.compile(r"(.+)\.(?:mlp|block_sparse_moe)\.experts\.(\d{1,4})\.(" + "|".join(_PARTS) + r")\.weight")
_ALL = re.compile(r"(.+)\.(?:mlp\.experts|block_sparse_moe(?:\.experts)?)\."
                  r"(gate_up_proj|down_proj|input_linear\.weight|output_linear\.weight)")
_DOWN = ("down_proj", "output_linear.weight")
_NAMES = {".block_sparse_moe.gate.weight": ".mlp.gate.weight",
          ".block_sparse_moe.router.weight": ".mlp.gate.weight",
          ".block_sparse_moe.router.layer.weight": ".mlp.gate.weight",
          ".mlp.router.weight": ".mlp.gate.weight", ".mlp.router.bias": ".mlp.gate.bias",
          ".shared_mlp.output_linear.weight": ".mlp.shared_expert.down_proj.weight",
          **{f".mlp.shared_experts.{part}_proj.weight": f".mlp.shared_expert.{part}_proj.weight"
             for part in ("gate", "up", "down")}}
"""Ends of names, and those that they have here."""
_SHARED = ".shared_mlp.input_linear.weight"


class Stacked:
    """Matrices of one shape and type as one, their rows below each other. Implements source.SourceTensor."""

    def __init__(self, parts: Sequence[SourceTensor]) -> None:
        self._parts = parts
        self.shape: tuple[int, ...] = (len(parts) * parts[0].shape[0], *parts[0].shape[1:])
        self.type_name = parts[0].type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32. Raises SourceError."""
        return np.concatenate([self._parts[0].read(0, 0),
                               *(part.read(first, last) for part, first, last in self._among(start, stop))])

    def grid(self, start: int, stop: int) -> Grid | None:
        """Of rows start to stop, where all parts have one. Raises SourceError."""
        grids = [self._parts[0].grid(0, 0), *(part.grid(first, last) for part, first, last in self._among(start, stop))]
        known = [grid for grid in grids if grid is not None]
        if len(known) < len(grids):
            return None
        return Grid(np.concatenate([grid.scale for grid in known]), np.concatenate([grid.minimum for grid in known]),
                    known[0].top)

    def _among(self, start: int, stop: int) -> list[tuple[SourceTensor, int, int]]:
        rows = self._parts[0].shape[0]
        return [(self._parts[i], max(start - i * rows, 0), min(stop - i * rows, rows))
                for i in range(start // rows, -(-stop // rows) if stop > start else start // rows)]


class Flat:
    """A tensor of matrices, one behind the other, as one matrix: of each so many rows, from `first` on. Implements
    source.SourceTensor."""

    def __init__(self, tensor: SourceTensor, first: int, rows: int) -> None:
        self._tensor, self._first, self._rows = tensor, first, rows
        self.shape: tuple[int, ...] = (tensor.shape[0] * rows, tensor.shape[2])
        self.type_name = tensor.type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32. Raises SourceError."""
        found = [self._tensor.read(0, 0).reshape(0, self.shape[1])]
        for i in range(start // self._rows, -(-stop // self._rows) if stop > start else 0):
            first, last = max(start - i * self._rows, 0), min(stop - i * self._rows, self._rows)
            found.append(self._tensor.read(i, i + 1)[0, self._first + first:self._first + last])
        return np.concatenate(found)

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: only tensors of safetensors files are so, and these have no 4-bit grid."""
        return None


class AsRow:
    """A vector as a matrix of one row. Implements source.SourceTensor."""

    def __init__(self, vector: SourceTensor) -> None:
        self._vector = vector
        self.shape: tuple[int, ...] = (1, *vector.shape)
        self.type_name = vector.type_name

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32. Raises SourceError."""
        return self._vector.read(0, self.shape[1])[None][start:stop]

    def grid(self, start: int, stop: int) -> Grid | None:
        """None: vectors have none."""
        return None


def with_experts_of_gguf(found: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors of a GGUF file by name: vectors of all experts are one there, as here; what is a matrix of one row
    here may be a vector there."""
    tensors = dict(found)
    for name, tensor in found.items():
        if name.endswith("_exps.bias") and len(tensor.shape) == 2:
            tensors[name] = Vectors(tensor)
        elif name.endswith("ffn_gate_inp_shexp.weight") and len(tensor.shape) == 1:
            tensors[name] = AsRow(tensor)
    return tensors


def with_experts(found: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors of a safetensors model by name, those of experts by the names that they have here: whether the file
    has a tensor for each expert, as most have, or for all of them together, with gate and up in one."""
    tensors: dict[str, SourceTensor] = {}
    stacked: dict[str, dict[int, SourceTensor]] = {}
    for name, tensor in found.items():
        if one := _ONE.fullmatch(name):
            of = f"{one[1]}.mlp.experts.{_PARTS[one[3]]}_proj.weight"
            stacked.setdefault(of, {})[int(one[2])] = tensor
        elif (every := _ALL.fullmatch(name)) and len(tensor.shape) == 3:
            rows = tensor.shape[1]
            parts = [("down", 0, rows)] if every[2] in _DOWN else [("gate", 0, rows // 2), ("up", rows // 2, rows // 2)]
            tensors |= {f"{every[1]}.mlp.experts.{part}_proj.weight": Flat(tensor, first, count)
                        for part, first, count in parts}
        elif name.endswith(_SHARED):
            half = tensor.shape[0] // 2
            for part, first in (("gate", 0), ("up", half)):
                tensors[f"{name.removesuffix(_SHARED)}.mlp.shared_expert.{part}_proj.weight"] = Rows(
                    tensor, (half, *tensor.shape[1:]), first, half, 2 * half)
        else:
            end = next((end for end in _NAMES if name.endswith(end)), "")
            tensors[name.removesuffix(end) + _NAMES.get(end, "")] = tensor
    for name, experts in stacked.items():
        ordered = [experts.get(number) for number in range(len(experts))]
        whole = [tensor for tensor in ordered if tensor is not None]
        if len(whole) == len(experts) and len({(tensor.shape, tensor.type_name) for tensor in whole}) == 1:
            tensors[name] = Stacked(whole)
        else:  # some are missing, or are not like the others: the first is named as one that the family does not have
            tensors |= {f"{name} ({number})": tensor for number, tensor in experts.items()}
    return tensors
