"""Grouped-query attention over the key-value cache (cache.py): softmax(q k / sqrt(d)) v for every new token and head.

A work item is one key-value head with all its query heads times some neighbouring tokens of one session: their *rows*
go through the keys and values together, which are read and widened once for all of them. Positions are cut into splits
of SPLIT, always the same ones. In a split each row has its own maximum and sums ("FlashAttention", Dao et al. 2022);
splits are combined in order, either by the thread that goes through all of them, or, where there are few tokens, by
COMBINE after every split was an item of its own ("Flash-Decoding", Dao et al. 2023). Both do the same operations in the
same order: the result depends neither on the threads nor on which tokens come together. A layer with a window (Beltagy
et al. 2020, "Longformer") leaves out the splits that lie before it.
"""

from .attention_apart import apart_f16, apart_f32, apart_q4, apart_q8
from .attention_low import low_scores, low_sums
from .attention_split import STATE_BYTES, split_kernel
from .combine import add_split, begin, finish, first_split, in_parts, most_splits
from .decorators import kernel
from .records import ATTENTION, MOST_TOKENS_TOGETHER, ROWS_TOGETHER, SPLIT, STATE, TOKEN, TOKEN_BYTES, VALUE_POSITIONS
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32, store_f32x16, store_i64
from .state import take

split_f16, split_f32, split_q4 = (split_kernel(cache_type) for cache_type in ("f16", "f32", "q4"))
split_q8 = split_kernel("q8", low_scores, low_sums)


@kernel
def _apart(token):
    """Whether a token stands apart: its key and value are not at its position."""
    return load_i64(token + TOKEN.slot) != load_i64(token + TOKEN.position)


@kernel
def _neighbours(first, most):
    """How many tokens from `first` on, at most so many, go together: those of one session; a token apart goes alone."""
    count = 1
    while (count < most and load_i64(first + count * TOKEN_BYTES + TOKEN.pages) == load_i64(first + TOKEN.pages)
           and not _apart(first) and not _apart(first + count * TOKEN_BYTES)):
        count += 1
    return count


@kernel
def _rows(op, state, first, tokens, kv_head, split, scratch, splits):
    """One key-value head with all its query heads for `tokens` tokens of one session from number `first` on.

    split: the one to compute, into its place in `partial`; below 0 for all, combined, into `out`.
    """
    heads, kv_heads, head_dim = (load_i64(op + ATTENTION.heads), load_i64(op + ATTENTION.kv_heads),
                                 load_i64(op + ATTENTION.head_dim))
    layer, scale = load_i64(op + ATTENTION.layer), load_f32(op + ATTENTION.scale)
    cache_type = load_i64(op + ATTENTION.cache_type)
    stride, out_stride = load_i64(op + ATTENTION.qkv_stride), load_i64(op + ATTENTION.out_stride)
    group, wide = heads // kv_heads, (head_dim + 15) // 16 * 16
    rows, part = tokens * group, 64 + 4 * wide
    room = (rows + 7) * 4 * wide
    q, sums, totals = scratch, scratch + room, scratch + 2 * room
    states, scores = scratch + 3 * room, scratch + 3 * room + 2 * rows * STATE_BYTES
    running, scaled = states + rows * STATE_BYTES, scores + (rows + 7) * 4 * SPLIT
    low = scaled + (rows + 7) * 4 * VALUE_POSITIONS
    record = load_i64(state + STATE.token_records) + first * TOKEN_BYTES
    length, slot = load_i64(record + TOKEN.position) + 1, load_i64(record + TOKEN.slot)
    own_split = (length - 1) // SPLIT if _apart(record) else -1
    window, cap = load_i64(op + ATTENTION.window), load_f32(op + ATTENTION.softcap)
    lowest = max(split, first_split(length, window))
    end = min(split + 1 if split >= 0 else splits, (length + tokens - 2) // SPLIT + 1)
    if split >= 0 and lowest >= end:
        return
    for row in range(rows):
        source = load_i64(op + ATTENTION.qkv) + (first + row // group) * stride + (
            kv_head * group + row % group) * head_dim * 4
        for i in range(head_dim):
            store_f32(q + 4 * (row * wide + i), load_f32(source + 4 * i))
        begin(running + row * STATE_BYTES, totals + row * 4 * wide, wide)
    for number in range(lowest, end):
        start = number * SPLIT
        if number == own_split:
            before = length - 1 - start
            if cache_type == 0:
                apart_f16(rows, before, start, slot, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                          sums, states, window, cap)
            elif cache_type == 1:
                apart_f32(rows, before, start, slot, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                          sums, states, window, cap)
            elif cache_type == 2:
                apart_q8(rows, before, start, slot, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                         sums, states, window, cap)
            else:
                apart_q4(rows, before, start, slot, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                         sums, states, window, cap)
        elif cache_type == 0:
            split_f16(tokens, group, length, start, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                      sums, states, low, window, cap)
        elif cache_type == 1:
            split_f32(tokens, group, length, start, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                      sums, states, low, window, cap)
        elif cache_type == 2:
            split_q8(tokens, group, length, start, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                     sums, states, low, window, cap)
        else:
            split_q4(tokens, group, length, start, record, layer, kv_head, head_dim, wide, scale, q, scores, scaled,
                     sums, states, low, window, cap)
        for row in range(rows):
            token = row // group
            if start >= length + token or (window and start + SPLIT <= length + token - window):
                continue
            row_state, row_sums = states + row * STATE_BYTES, sums + row * 4 * wide
            if split < 0:
                add_split(running + row * STATE_BYTES, totals + row * 4 * wide, row_state, row_sums, wide)
            else:
                head = (first + token) * heads + kv_head * group + row % group
                to = load_i64(op + ATTENTION.partial) + (head * splits + split) * part
                store_i64(to, load_i64(row_state))
                for i in range(0, 4 * wide, 64):
                    store_f32x16(to + 64 + i, load_f32x16(row_sums + i))
    if split < 0:
        for row in range(rows):
            out = load_i64(op + ATTENTION.out) + (first + row // group) * out_stride
            head, sinks = kv_head * group + row % group, load_i64(op + ATTENTION.sinks)
            finish(running + row * STATE_BYTES, totals + row * 4 * wide, head_dim, out + head * head_dim * 4,
                   sinks + 4 * head if sinks else 0)


@kernel
def attention(op, state, thread):
    """The operation: all items."""
    kv_heads, tokens = load_i64(op + ATTENTION.kv_heads), load_i64(state + STATE.tokens)
    scratch = load_i64(op + ATTENTION.scratch) + thread * load_i64(op + ATTENTION.scratch_stride)
    at_once = min(max(ROWS_TOGETHER // (load_i64(op + ATTENTION.heads) // kv_heads), 1), MOST_TOKENS_TOGETHER)
    splits = most_splits(state)
    parts = splits if in_parts(op, state, splits) else 1
    records = load_i64(state + STATE.token_records)
    items = (tokens + at_once - 1) // at_once * kv_heads * parts
    item = take(state, 1)
    while item < items:
        # The last tokens see most: they go first, so that the threads end together.
        block, rest = divmod(items - 1 - item, kv_heads * parts)
        first, last = block * at_once, min((block + 1) * at_once, tokens)
        while first < last:
            count = _neighbours(records + first * TOKEN_BYTES, last - first)
            _rows(op, state, first, count, rest // parts, rest % parts if parts > 1 else -1, scratch, splits)
            first += count
        item = take(state, 1)
