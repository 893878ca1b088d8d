"""The records of mixtures of experts (experts.py), as those in records.py."""

from typing import NamedTuple

from .records import NEURONS_SUMS, TOKENS_AT_ONCE, UP_ROWS, offsets

LEFT_OUT = -1
"""Takes the place of an expert that a token would have, and is not computed with."""


class Route(NamedTuple):
    """The experts of each token: those whose router gives most, of equals the first; and what each weighs.

    Leaving out those that weigh little is a lossy mode ("dynamic expert skipping", Lu et al. 2024, "Not All Experts are
    Equal"). Where the weights of a token's experts add up to 1, so do those of the experts that stay; where those of
    all experts do, the others keep theirs.
    """

    logits: int
    """float32, a row for each token, in whole vectors of 16."""
    logits_stride: int
    experts: int
    per_token: int
    """How many experts a token has."""
    normalized: int
    """1 where the weights of a token's experts add up to 1, 0 where those of all experts do."""
    chosen: int
    """int64 (token, per_token): numbers of experts, ascending; LEFT_OUT in the place of one that is left out."""
    weights: int
    """float32 (token, per_token)."""
    exact: int
    """1 where logits that are not finite are an error, 0 for a guess."""
    scale: int
    """What weights are multiplied by at the end: the bits of a float32."""
    threshold: int
    """Left out are experts whose part of the weight of a token's experts together is less, but never the one with the
    largest: the bits of a float32, at least 0 and below 1; 0 leaves out none."""


ROUTE = offsets(Route)


class Dispatch(NamedTuple):
    """Which tokens each expert has; those experts that are not in memory are asked for."""

    chosen: int
    """As in Route; and the next two."""
    experts: int
    per_token: int
    starts: int
    """int64: experts + 1, where each expert's tokens begin in `rows`; then how many experts have some; then which."""
    rows: int
    """int64: the tokens of the first expert, those of the next, and so on."""
    places: int
    """int64 (token, per_token): where in `rows` it stands."""
    claims: int
    """int64: experts * units, for units or experts that a thread has taken; then one for each expert, how many of its
    units are done. All become 0."""
    units: int
    """Of an expert."""
    table: int
    """int64 (experts, units): addresses, or WAIT."""
    needed: int
    """int64 an expert, where `time` is written when it is needed; 0 where all are in memory: then so are the others."""
    time: int
    """Address of an int64."""
    layer: int
    asked: int
    """Address of an int64, where `layer` is written when one that is needed or guessed is not in memory."""
    semaphore: int
    """What is posted then."""
    slots: int
    """For how many of the layer's experts there is room."""
    short: int
    """Address of an int64: 1 where more are needed than there is room for, so that each is told of when it is done."""
    guess: int
    """As `chosen`, for the next layer, by its router and what this layer was given; or 0."""
    guessed: int
    """As `needed`, of the next layer: those of the guess."""
    next_units: int
    next_table: int
    counts: int
    """int64 (2,), to which are added the tokens that come, and the experts that they have; 0 where nothing is left out,
    and nothing counted."""


DISPATCH = offsets(Dispatch)


class Experts(NamedTuple):
    """What each expert makes of its tokens: down(act(gate x) * up x), by units (expert_units.py)."""

    table: int
    units: int
    groups: int
    in_unit: int
    form: int
    """Of gate and up."""
    blocks: int
    down: int
    """A format."""
    tiles: int
    """Of 16 in the result."""
    x: int
    """A row for each token, in the form that gate and up meet."""
    x_stride: int
    activation: int
    """Which function of HIDDEN_ACTS."""
    experts: int
    starts: int
    """As in Dispatch; and the next two."""
    rows: int
    claims: int
    totals: int
    """Of many tokens: float32, for each expert (tile, its tokens, 16), one expert after another."""
    partial: int
    """Of one token: float32 (tile, expert, unit, 16)."""
    scratch: int
    scratch_stride: int
    """expert_scratch_bytes for each thread."""
    done: int
    """int64 an expert, where `time` is written when it is done, where `short` says so; 0 where all are in memory."""
    time: int
    short: int
    semaphore: int
    gate_bias: int
    """float32 (experts, 32 * groups), added to what gate makes of x; 0 where there is none."""
    up_bias: int


EXPERTS = offsets(Experts)


class ExpertSums(NamedTuple):
    """y += what a token's experts made of it, each times its weight, added in the order of their numbers."""

    chosen: int
    """As in Route, Dispatch and Experts; and so the next seven."""
    weights: int
    per_token: int
    places: int
    starts: int
    totals: int
    partial: int
    units: int
    tiles: int
    y: int
    y_stride: int
    bias: int
    """float32 (experts, 16 * tiles), added to what each makes of a token; 0 where there is none."""


EXPERT_SUMS = offsets(ExpertSums)


class Glu(NamedTuple):
    """act(gate) * up of rows in which gate, then up, have been computed; times the sigmoid of a number that stands
    behind them, where there is one."""

    x: int
    x_stride: int
    columns: int
    """Of gate, and of up."""
    activation: int
    """Which function of HIDDEN_ACTS."""
    weighed: int
    """1 where that number is there."""
    floats: int
    """As in records.Norm; and so the next five. 0 for none."""
    floats_stride: int
    quantized: int
    quantized_stride: int
    fine: int
    fine_stride: int


GLU = offsets(Glu)


def expert_scratch_bytes(tiles: int, x_bytes: int, hidden_bytes: int, in_unit: int) -> int:
    """Scratch that a thread needs for EXPERTS. x_bytes, hidden_bytes: of a token's row that meets gate and up, and of
    the activations of a unit."""
    many = UP_ROWS + TOKENS_AT_ONCE * (-(-x_bytes // 64) * 64 + hidden_bytes) + 64 + 8 * in_unit
    return max(many, NEURONS_SUMS + 128 * tiles + 64 * tiles)
