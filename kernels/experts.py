"""Mixtures of experts: a router chooses a few feed-forward parts for each token (Shazeer et al. 2017, "Outrageously
Large Neural Networks").

What an expert makes of a token is a sum of its own, of the sums of its units in their order; a token's experts are
added in the order of their numbers. Which are computed first, those that are in memory already, changes nothing of
that, and neither does what other tokens an expert has.
"""

import numpy as np

from .decorators import kernel
from .expert_records import DISPATCH, EXPERT_SUMS, EXPERTS, LEFT_OUT, ROUTE
from .feed_forward import hidden_block, segments_of
from .formats import FORMATS, TILE
from .functions import exp
from .groups import GROUP_ALIGNMENT, row_tiles_of
from .linear import tile_bytes_of, tile_for_one, tile_of
from .one_token import HIDDEN, down_of_group
from .records import NEURONS_SUMS, SEGMENTS, STATE, TOKENS_AT_ONCE, UP_ROWS, WAIT
from .simd.arithmetic import add, fma, keep_first, reduce_add, reduce_max, splat, sub, zero_f32
from .simd.atomic import call_function, fetch_add, load_acquire
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32, store_f32x16, store_i64
from .state import add_waited, arrived, keep_looking, now, take

_ZERO = np.float32(0)
_TILES_AT_ONCE = 16
"""Of the result, that a thread adds up for a token."""
_ROW_TILES = row_tiles_of(gated=True)
_ROW_BYTES = _ROW_TILES * TILE * 4
_HEADER_BYTES = tuple(form.header_bytes for form in FORMATS.values())
_BLOCK_BYTES = tuple(form.block_bytes for form in FORMATS.values())
_ACTIVATION_BLOCK = tuple(form.activation.block_bytes for form in FORMATS.values())


@kernel
def _exp(x):
    return reduce_max(exp(splat(x)))


@kernel
def _choose(row, experts, per_token, chosen):
    """The experts with the largest of some finite logits, of equals the first, in ascending order; the largest."""
    before, last, largest = _ZERO, -1, _ZERO
    for count in range(per_token):
        best, at = _ZERO, -1
        for expert in range(experts):
            logit = load_f32(row + 4 * expert)
            follows = count == 0 or logit < before or (logit == before and expert > last)
            if follows and (at < 0 or logit > best):
                best, at = logit, expert
        before, last = best, at
        if count == 0:
            largest = best
        place = count
        while place > 0 and load_i64(chosen + 8 * (place - 1)) > at:
            store_i64(chosen + 8 * place, load_i64(chosen + 8 * (place - 1)))
            place -= 1
        store_i64(chosen + 8 * place, at)
    return largest


@kernel
def _leave_out(row, per_token, chosen, weights, largest, least):
    """Leave out those chosen that weigh less than `least`, but not the first of the logit `largest`; what is left of
    their weight."""
    total, spared = _ZERO, False
    for i in range(per_token):
        weight, expert = load_f32(weights + 4 * i), load_i64(chosen + 8 * i)
        spare = not spared and load_f32(row + 4 * expert) == largest
        spared |= spare
        if weight < least and not spare:
            store_i64(chosen + 8 * i, LEFT_OUT)
            store_f32(weights + 4 * i, _ZERO)
        else:
            total += weight
    return total


@kernel
def route(op, state):
    """Choose each token's experts, and weigh them: softmax over all experts, or over those chosen, times a number."""
    experts, per_token = load_i64(op + ROUTE.experts), load_i64(op + ROUTE.per_token)
    normalized, tokens = load_i64(op + ROUTE.normalized), load_i64(state + STATE.tokens)
    token = take(state, 1)
    while token < tokens:
        row = load_i64(op + ROUTE.logits) + token * load_i64(op + ROUTE.logits_stride)
        chosen = load_i64(op + ROUTE.chosen) + token * per_token * 8
        weights = load_i64(op + ROUTE.weights) + token * per_token * 4
        sums = zero_f32()
        for expert in range(0, experts, 16):
            sums = add(sums, keep_first(load_f32x16(row + 4 * expert), experts - expert, _ZERO))
        if reduce_add(sums) * _ZERO != _ZERO:
            if load_i64(op + ROUTE.exact):
                store_i64(state + STATE.error, 1)
            for i in range(per_token):
                store_i64(chosen + 8 * i, i)
                store_f32(weights + 4 * i, _ZERO)
        else:
            largest = _choose(row, experts, per_token, chosen)
            total = _ZERO
            for i in range(per_token):
                weight = _exp(load_f32(row + 4 * load_i64(chosen + 8 * i)) - largest)
                store_f32(weights + 4 * i, weight)
                total += weight
            least = load_f32(op + ROUTE.threshold)
            if least > _ZERO:
                total = _leave_out(row, per_token, chosen, weights, largest, least * total)
            if not normalized:
                sums = zero_f32()
                for expert in range(0, experts, 16):
                    sums = add(sums, keep_first(exp(sub(load_f32x16(row + 4 * expert), splat(largest))),
                                                experts - expert, _ZERO))
                total = reduce_add(sums)
            for i in range(per_token):
                store_f32(weights + 4 * i, load_f32(weights + 4 * i) / total * load_f32(op + ROUTE.scale))
        token = take(state, 1)


@kernel
def dispatch(op, state):
    """Put the tokens in the order of their experts, and ask for what is not in memory."""
    if take(state, 1) > 0:
        return
    chosen, experts, per_token = (load_i64(op + DISPATCH.chosen), load_i64(op + DISPATCH.experts),
                                  load_i64(op + DISPATCH.per_token))
    starts, rows, places = (load_i64(op + DISPATCH.starts), load_i64(op + DISPATCH.rows),
                            load_i64(op + DISPATCH.places))
    claims, units = load_i64(op + DISPATCH.claims), load_i64(op + DISPATCH.units)
    listed, pairs = starts + 8 * (experts + 1), load_i64(state + STATE.tokens) * per_token
    for expert in range(experts + 1):
        store_i64(starts + 8 * expert, 0)
    for pair in range(pairs):
        expert = load_i64(chosen + 8 * pair)
        if expert != LEFT_OUT:
            at = starts + 8 * (expert + 1)
            store_i64(at, load_i64(at) + 1)
    count = 0
    for expert in range(experts):
        at = starts + 8 * (expert + 1)
        if load_i64(at):
            count += 1
            store_i64(listed + 8 * count, expert)
        store_i64(at, load_i64(at) + load_i64(at - 8))
    store_i64(listed, count)
    counts = load_i64(op + DISPATCH.counts)
    if counts:
        store_i64(counts, load_i64(counts) + pairs // per_token)
        store_i64(counts + 8, load_i64(counts + 8) + load_i64(starts + 8 * experts))
    for claim in range(experts * (units + 1)):
        store_i64(claims + 8 * claim, 0)
    for pair in range(pairs):
        expert = load_i64(chosen + 8 * pair)
        if expert == LEFT_OUT:
            continue
        taken = load_i64(claims + 8 * expert)
        place = load_i64(starts + 8 * expert) + taken
        store_i64(claims + 8 * expert, taken + 1)
        store_i64(rows + 8 * place, pair // per_token)
        store_i64(places + 8 * pair, place)
    for claim in range(experts):
        store_i64(claims + 8 * claim, 0)
    if load_i64(op + DISPATCH.needed):
        _ask(op, state, listed, pairs)


@kernel
def _ask(op, state, listed, pairs):
    """Have experts that are needed and not in memory read, and those that the next layer may need."""
    time, short = load_i64(load_i64(op + DISPATCH.time)), load_i64(op + DISPATCH.short)
    count, units, table = load_i64(listed), load_i64(op + DISPATCH.units), load_i64(op + DISPATCH.table)
    for i in range(1, count + 1):
        store_i64(load_i64(op + DISPATCH.needed) + 8 * load_i64(listed + 8 * i), time)
    store_i64(short, int(count > load_i64(op + DISPATCH.slots)))
    # From here on none of these loses its place: whoever wants it looks again at what is needed after taking its
    # addresses out of the table (residency/experts.py). This is a barrier: addresses are read after it.
    fetch_add(short, 0)
    missing = 0
    for i in range(1, count + 1):
        first = load_i64(listed + 8 * i) * units
        for unit in range(first, first + units):
            missing |= int(load_acquire(table + 8 * unit) == WAIT)
    guess = load_i64(op + DISPATCH.guess)
    if guess:
        units, table = load_i64(op + DISPATCH.next_units), load_i64(op + DISPATCH.next_table)
        for pair in range(pairs):
            expert = load_i64(guess + 8 * pair)
            if expert == LEFT_OUT:
                continue
            store_i64(load_i64(op + DISPATCH.guessed) + 8 * expert, time)
            missing |= int(load_acquire(table + 8 * expert * units) == WAIT)
    if missing:
        store_i64(load_i64(op + DISPATCH.asked), load_i64(op + DISPATCH.layer))
        call_function(load_i64(state + STATE.signal), load_i64(op + DISPATCH.semaphore), 0)


@kernel
def _group_bytes(form, blocks, down, tiles):
    size = _ROW_TILES * tile_bytes_of(form, blocks) + tiles * _BLOCK_BYTES[down]
    return (size + GROUP_ALIGNMENT - 1) // GROUP_ALIGNMENT * GROUP_ALIGNMENT


@kernel
def _bias(op, group, tile):
    """Where the biases of a tile of a group's rows are, counted over all experts; 0 where there are none."""
    biases = load_i64(op + (EXPERTS.gate_bias if tile < _ROW_TILES // 2 else EXPERTS.up_bias))
    return biases + 128 * group + tile % (_ROW_TILES // 2) * 64 if biases else 0


@kernel
def _one_token(op, w, expert, unit, x, scratch, out, out_stride, error):
    """A unit's sums for one token, 16 float32 every `out_stride` bytes."""
    form, blocks, down = load_i64(op + EXPERTS.form), load_i64(op + EXPERTS.blocks), load_i64(op + EXPERTS.down)
    tiles, in_unit, activation = (load_i64(op + EXPERTS.tiles), load_i64(op + EXPERTS.in_unit),
                                  load_i64(op + EXPERTS.activation))
    tile_bytes, group_bytes = tile_bytes_of(form, blocks), _group_bytes(form, blocks, down, tiles)
    groups = load_i64(op + EXPERTS.groups)
    last, first = min(in_unit, groups - unit * in_unit) - 1, expert * groups + unit * in_unit
    for group in range(last + 1):
        at = w + group * group_bytes
        for i in range(_ROW_TILES):
            tile_for_one(form, at + i * tile_bytes, blocks, x, scratch + 64 * i, _bias(op, first + group, i), 0)
        hidden_block(scratch, _ROW_TILES, activation, scratch + HIDDEN, down, error)
        down_of_group(down, at + _ROW_TILES * tile_bytes, scratch + HIDDEN, scratch + NEURONS_SUMS, tiles,
                      int(group == 0), int(group == last), w + in_unit * group_bytes, out, out_stride)


@kernel
def _some_tokens(op, w, expert, unit, rows, count, scratch, totals, stride, error):
    """The same for the tokens at `rows`, at most TOKENS_AT_ONCE, added to `totals`: (tile, token, 16), a tile every
    `stride` bytes."""
    form, blocks, down = load_i64(op + EXPERTS.form), load_i64(op + EXPERTS.blocks), load_i64(op + EXPERTS.down)
    tiles, in_unit, activation = (load_i64(op + EXPERTS.tiles), load_i64(op + EXPERTS.in_unit),
                                  load_i64(op + EXPERTS.activation))
    tile_bytes, group_bytes = tile_bytes_of(form, blocks), _group_bytes(form, blocks, down, tiles)
    groups = load_i64(op + EXPERTS.groups)
    first, groups = expert * groups + unit * in_unit, min(in_unit, groups - unit * in_unit)
    x, x_bytes = scratch + UP_ROWS, (blocks * _ACTIVATION_BLOCK[form] + 63) // 64 * 64
    for token in range(count):
        source = load_i64(op + EXPERTS.x) + load_i64(rows + 8 * token) * load_i64(op + EXPERTS.x_stride)
        for at in range(0, x_bytes, 64):
            store_f32x16(x + token * x_bytes + at, load_f32x16(source + at))
    hidden, hidden_bytes = x + TOKENS_AT_ONCE * x_bytes, in_unit * _ACTIVATION_BLOCK[down]
    table = (hidden + TOKENS_AT_ONCE * hidden_bytes + 63) // 64 * 64
    for group in range(groups):
        at = w + group * group_bytes
        for i in range(_ROW_TILES):
            tile_of(form, at + i * tile_bytes, blocks, x, x_bytes, count, scratch + 64 * i, _ROW_BYTES,
                    _bias(op, first + group, i), 0)
        out = hidden + group * _ACTIVATION_BLOCK[down]
        for token in range(count):
            hidden_block(scratch + token * _ROW_BYTES, _ROW_TILES, activation, out + token * hidden_bytes, down, error)
        store_i64(table + 8 * group, at + _ROW_TILES * tile_bytes)
    headers = w + in_unit * group_bytes
    for tile in range(tiles):  # the first of SEGMENTS segments of so many groups is all of these
        segments_of(down, table, SEGMENTS * groups, 0, 1, tile * _BLOCK_BYTES[down],
                    headers + tile * _HEADER_BYTES[down], hidden, hidden_bytes, count, totals + tile * stride)


@kernel
def _expert(op, state, thread, expert):
    """An expert's sums for all of its tokens, unit by unit; whether its weights came."""
    units, table, tiles = load_i64(op + EXPERTS.units), load_i64(op + EXPERTS.table), load_i64(op + EXPERTS.tiles)
    scratch = load_i64(op + EXPERTS.scratch) + thread * load_i64(op + EXPERTS.scratch_stride)
    starts = load_i64(op + EXPERTS.starts) + 8 * expert
    start = load_i64(starts)
    tokens, rows = load_i64(starts + 8) - start, load_i64(op + EXPERTS.rows) + 8 * start
    totals = load_i64(op + EXPERTS.totals) + start * tiles * 64
    for at in range(totals, totals + tokens * tiles * 64, 64):
        store_f32x16(at, zero_f32())
    for unit in range(units):
        w = arrived(state, thread, table, expert * units + unit)
        if w == WAIT:
            return False
        if tokens == 1:
            x = load_i64(op + EXPERTS.x) + load_i64(rows) * load_i64(op + EXPERTS.x_stride)
            out = scratch + NEURONS_SUMS + 128 * tiles
            _one_token(op, w, expert, unit, x, scratch, out, 64, state + STATE.error)
            for at in range(0, 64 * tiles, 64):
                store_f32x16(totals + at, add(load_f32x16(totals + at), load_f32x16(out + at)))
        else:
            for token in range(0, tokens, TOKENS_AT_ONCE):
                _some_tokens(op, w, expert, unit, rows + 8 * token, min(tokens - token, TOKENS_AT_ONCE), scratch,
                             totals + 64 * token, 64 * tokens, state + STATE.error)
    _finished(op, state, expert)
    return True


@kernel
def _finished(op, state, expert):
    """Tell that an expert's room may be used for another, where there is too little for all."""
    done = load_i64(op + EXPERTS.done)
    if done and load_i64(load_i64(op + EXPERTS.short)):
        store_i64(done + 8 * expert, load_i64(load_i64(op + EXPERTS.time)))
        call_function(load_i64(state + STATE.signal), load_i64(op + EXPERTS.semaphore), 0)


@kernel
def _take_unit(op, state, thread, item):
    """Compute a unit for the one token, if it is there and nobody has taken it; whether it was computed."""
    units, claims, experts = (load_i64(op + EXPERTS.units), load_i64(op + EXPERTS.claims),
                              load_i64(op + EXPERTS.experts))
    listed = load_i64(op + EXPERTS.starts) + 8 * (experts + 1)
    expert, unit = load_i64(listed + 8 + 8 * (item // units)), item % units
    w = load_acquire(load_i64(op + EXPERTS.table) + 8 * (expert * units + unit))
    if w == WAIT or fetch_add(claims + 8 * item, 1) > 0:
        return False
    scratch = load_i64(op + EXPERTS.scratch) + thread * load_i64(op + EXPERTS.scratch_stride)
    _one_token(op, w, expert, unit, load_i64(op + EXPERTS.x), scratch, load_i64(op + EXPERTS.partial) + 64 * item,
               64 * load_i64(listed) * units, state + STATE.error)
    if fetch_add(claims + 8 * (experts * units + expert), 1) == units - 1:
        _finished(op, state, expert)
    return True


@kernel
def experts(op, state, thread):
    """Of one token unit by unit, of several expert by expert: whatever is there and not taken, until all is taken."""
    claims, single = load_i64(op + EXPERTS.claims), load_i64(state + STATE.tokens) == 1
    listed = load_i64(op + EXPERTS.starts) + 8 * (load_i64(op + EXPERTS.experts) + 1)
    items, units = load_i64(listed), load_i64(op + EXPERTS.units)
    if single:
        items *= units
    since = 0
    while True:
        left, found = False, False
        for item in range(items):
            if load_acquire(claims + 8 * item):
                continue
            left = True
            if single:
                found |= _take_unit(op, state, thread, item)
                continue
            expert = load_i64(listed + 8 + 8 * item)
            if (load_acquire(load_i64(op + EXPERTS.table) + 8 * expert * units) != WAIT
                    and fetch_add(claims + 8 * item, 1) == 0):
                found = True
                if not _expert(op, state, thread, expert):
                    return
        if (found or not left) and since:
            add_waited(state, thread, since)
            since = 0
        if not left:
            return
        if not found:
            since = since if since else now(state)
            if not keep_looking(state, since):
                add_waited(state, thread, since)
                return


@kernel
def expert_sums(op, state):
    """y += the sum of a token's experts' results, each times its weight."""
    tokens, tiles = load_i64(state + STATE.tokens), load_i64(op + EXPERT_SUMS.tiles)
    per_token, units = load_i64(op + EXPERT_SUMS.per_token), load_i64(op + EXPERT_SUMS.units)
    starts, totals = load_i64(op + EXPERT_SUMS.starts), load_i64(op + EXPERT_SUMS.totals)
    parts, bias = (tiles + _TILES_AT_ONCE - 1) // _TILES_AT_ONCE, load_i64(op + EXPERT_SUMS.bias)
    item = take(state, 1)
    while item < tokens * parts:
        token, first = item // parts, item % parts * _TILES_AT_ONCE
        chosen, places = (load_i64(op + EXPERT_SUMS.chosen) + 8 * token * per_token,
                          load_i64(op + EXPERT_SUMS.places) + 8 * token * per_token)
        weights = load_i64(op + EXPERT_SUMS.weights) + 4 * token * per_token
        y = load_i64(op + EXPERT_SUMS.y) + token * load_i64(op + EXPERT_SUMS.y_stride)
        stay = 0
        for i in range(per_token):
            stay += int(load_i64(chosen + 8 * i) != LEFT_OUT)
        for tile in range(first, min(first + _TILES_AT_ONCE, tiles)):
            result, number = zero_f32(), 0
            for i in range(per_token):
                if load_i64(chosen + 8 * i) == LEFT_OUT:
                    continue
                if tokens == 1:
                    value = zero_f32()
                    at = load_i64(op + EXPERT_SUMS.partial) + 64 * units * (tile * stay + number)
                    number += 1
                    for unit in range(units):
                        value = add(value, load_f32x16(at + 64 * unit))
                else:
                    start = load_i64(starts + 8 * load_i64(chosen + 8 * i))
                    count = load_i64(starts + 8 * load_i64(chosen + 8 * i) + 8) - start
                    place = load_i64(places + 8 * i) - start
                    value = load_f32x16(totals + 64 * (start * tiles + tile * count + place))
                if bias:
                    value = add(value, load_f32x16(bias + 64 * (load_i64(chosen + 8 * i) * tiles + tile)))
                result = fma(splat(load_f32(weights + 4 * i)), value, result)
            store_f32x16(y + 64 * tile, add(load_f32x16(y + 64 * tile), result))
        item = take(state, 1)
