"""The GPU kernel of `attention.attend_fused`, in Triton, which comes with PyTorch where that is built for GPUs."""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None


def attention(
    query, keys, values, slots, seen, out, tops, totals, scale, tokens, chunk, slot_stride, head_stride, part_stride,
    OWN: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """A program: one row and key-value head, a tile of its (token, query head) pairs, a part of its columns.

    Writes the weighted mean of the values where WHOLE, else the weighted sum with the top score and the sum of weights.
    """
    row = tl.program_id(0) // OWN
    head = tl.program_id(0) % OWN
    part = tl.program_id(2)
    before = tl.load(seen + row).to(tl.int32)
    base = tl.load(slots + row).to(tl.int64) * slot_stride + head * head_stride
    place = tl.program_id(1) * TILE + tl.arange(0, TILE)
    token = place // GROUP
    inside = token < tokens
    pair = (row * tokens + token) * (OWN * GROUP) + head * GROUP + place % GROUP
    lane = tl.arange(0, WIDTH)
    asked = tl.load(query + pair[:, None] * WIDTH + lane[None, :], mask=inside[:, None], other=0.0)
    begin = part * chunk
    end = tl.minimum(begin + chunk, before + tokens)
    top = tl.full([TILE], -1e30, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, WIDTH], tl.float32)
    for at in range(begin, end, BLOCK):
        column = at + tl.arange(0, BLOCK)
        there = column < end
        key = tl.load(keys + base + column[None, :] * WIDTH + lane[:, None], mask=there[None, :], other=0.0)
        sees = there[None, :] & (column[None, :] <= before + token[:, None])
        score = tl.where(sees, tl.dot(asked, key, input_precision="ieee") * scale, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.where(sees, tl.exp2(score - higher[:, None]), 0.0)
        share = tl.exp2(top - higher)
        total = total * share + tl.sum(weight, 1)
        value = tl.load(values + base + column[:, None] * WIDTH + lane[None, :], mask=there[:, None], other=0.0)
        mixed = mixed * share[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = higher
    if WHOLE:
        mixed = mixed / total[:, None]
    at_part = part.to(tl.int64) * part_stride
    target = out + (at_part + pair)[:, None] * WIDTH + lane[None, :]
    tl.store(target, mixed.to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(tops + at_part + pair, top, mask=inside)
    tl.store(totals + at_part + pair, total, mask=inside)


if triton is not None:
    attention = triton.jit(attention)
