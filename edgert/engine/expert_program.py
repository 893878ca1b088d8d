"""The operations of a layer's experts: the router, which tokens each expert has, the experts, their sum."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from edgert.bundle import Header
from edgert.kernels.expert_records import Dispatch, Experts, ExpertSums, Route
from edgert.kernels.formats import FORMATS, TILE
from edgert.kernels.records import HIDDEN_ACTS, Code
from edgert.kernels.team import Program
from edgert.models.expert_config import Config
from edgert.models.tensors import Role
from edgert.residency.source import Asking

from .buffers import Buffer, Buffers


class LayerWeights(NamedTuple):
    """Where a layer's experts are: the address of its table, what is asked with for them, and the addresses of what
    "gate", "up" and "down" have for biases, if they have some."""

    table: int
    asking: Asking
    biases: Mapping[str, int]


class Routing:
    """Which of a token's experts are left out: those with a smaller part of their weight than `threshold`, 0 for none
    (kernels.expert_records.Route). Of those that are, `per_token` is counted."""

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self.counts = np.zeros(2, np.int64)
        """Tokens, and the experts that they had, of all layers together."""

    @property
    def per_token(self) -> float | None:
        """Experts of a token, on average over all that were computed; None where none was."""
        tokens, experts = self.counts.tolist()
        return experts / tokens if tokens else None


class ExpertProgram:
    """Appends to `body`. norm(x, weight, out): appends a norm of x into `out`. matrix(source, name, out, bias): appends
    a matrix times float32 vectors. places(layer): where its experts are. Layers are counted from the first that has
    experts.
    """

    def __init__(self, config: Config, header: Header, buffers: Buffers, body: Program, *,
                 norm: Callable[[Buffer, str, Buffer], None],
                 matrix: Callable[[Buffer, str, Buffer, str | None], None],
                 places: Callable[[int], LayerWeights], routing: Routing) -> None:
        self._config, self._header, self._buffers, self._body = config, header, buffers, body
        self._norm, self._matrix, self._places = norm, matrix, places
        self._routing = routing
        self._routers, self._norms, before = [], [], ""
        for spec in config.tensors():
            if spec.role is Role.ROUTER:
                self._routers.append(spec.name)
                self._norms.append(before)
            before = spec.name if spec.role is Role.NORM else before

    def append(self, layer: int, plain: Buffer, x: Buffer, residual: Buffer, scale: float,
               meanwhile: Callable[[], None]) -> None:
        """What a layer's experts make of x, times `scale`, is added to `residual`. plain: x as float32; x: in the form
        that their gate and up meet. meanwhile: appends what is computed before those of them that are not in memory. As
        a guess of what the next layer needs, its router is asked about `residual` as it is before."""
        made, c = self._buffers.of_experts, self._config
        here = self._places(layer)
        self._route(self._routers[layer], plain, made["routing"], made["experts"], made["expert_weights"], scale,
                    exact=True)
        following = layer + 1 if here.asking.semaphore and layer + 1 < len(self._routers) else None
        if following is not None:
            self._norm(residual, self._norms[following], made["guess_h"])
            self._route(self._routers[following], made["guess_h"], made["guess_routing"], made["guess_experts"],
                        made["guess_weights"], scale, exact=False)
        self._body.append(Code.DISPATCH, self._dispatch(layer, here, following))
        meanwhile()
        n, asking = self._header.neurons[layer], here.asking
        units, gate_up = n.expert_units(c), FORMATS[n.gate_up]
        tiles = -(-c.hidden_size // TILE)
        self._body.append(Code.EXPERTS, Experts(
            here.table, units.per_expert, units.groups, units.in_unit, gate_up.code, gate_up.blocks(c.hidden_size),
            FORMATS[n.down].code, tiles, x.address, x.stride, HIDDEN_ACTS.index(c.hidden_act), c.num_experts,
            made["expert_starts"].address, made["expert_rows"].address, made["expert_claims"].address,
            made["expert_totals"].address, made["expert_partial"].address, self._buffers.scratch,
            self._buffers.scratch_stride, asking.done, asking.time, made["expert_short"].address, asking.semaphore,
            here.biases.get("gate", 0), here.biases.get("up", 0)))
        self._body.append(Code.EXPERT_SUMS, ExpertSums(
            made["experts"].address, made["expert_weights"].address, c.num_experts_per_tok,
            made["expert_places"].address, made["expert_starts"].address, made["expert_totals"].address,
            made["expert_partial"].address, units.per_expert, tiles, residual.address, residual.stride,
            here.biases.get("down", 0)))

    def _route(self, router: str, source: Buffer, routing: Buffer, experts: Buffer, weights: Buffer, scale: float, *,
               exact: bool) -> None:
        self._matrix(source, router, routing, router.removesuffix("weight") + "bias" if self._config.biases else None)
        self._body.append(Code.ROUTE, Route(
            routing.address, routing.stride, self._config.num_experts, self._config.num_experts_per_tok,
            int(self._config.norm_topk_prob), experts.address, weights.address, int(exact),
            int(np.float32(scale).view(np.int32)),
            int(np.float32(self._routing.threshold).view(np.int32))))

    def _dispatch(self, layer: int, here: LayerWeights, following: int | None) -> Dispatch:
        made, c, asking = self._buffers.of_experts, self._config, here.asking
        guess = guessed = next_units = next_table = 0
        if following is not None:
            there = self._places(following)
            guess, guessed, next_table = made["guess_experts"].address, there.asking.guessed, there.table
            next_units = self._header.neurons[following].expert_units(c).per_expert
        return Dispatch(
            made["experts"].address, c.num_experts, c.num_experts_per_tok, made["expert_starts"].address,
            made["expert_rows"].address, made["expert_places"].address, made["expert_claims"].address,
            self._header.neurons[layer].expert_units(c).per_expert, here.table, asking.used, asking.time, layer,
            asking.asked, asking.semaphore, asking.slots, made["expert_short"].address, guess, guessed, next_units,
            next_table, self._routing.counts.ctypes.data if self._routing.threshold else 0)
