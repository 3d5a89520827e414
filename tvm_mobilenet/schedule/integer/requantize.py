"""From accumulators to 8 bits, in the arithmetic of each processor and with the same integers.

    y = clamp(round(float32(total) * scale) + zero_point, low, high), halves to even

is rounded twice, by the conversion to float32 and by the product, and both are IEEE operations that
every target has. What follows is exact, so its order is free: a conversion that saturates, a sum
that saturates and a clamp give what clamping the exact sum gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import Expr, Memory, constant
from tvm_mobilenet.schedule.integer.workload import Requantize
from tvm_mobilenet.schedule.intrinsics import aarch64, x86
from tvm_mobilenet.schedule.intrinsics.vectors import integer, join, part, same_bits, widen

__all__ = [
    "SAFE_STEPS",
    "Arithmetic",
    "group_sizes",
    "is_safe",
    "store_narrow",
    "store_rows",
    "to_bytes",
    "to_bytes_by_four",
]

Arithmetic = Literal["neon", "x86", "plain"]
"""Whose instructions round and narrow; `plain` is what LLVM makes of ordinary TIR."""

SAFE_STEPS = 2.0**30
"""Below that many steps a conversion to int32 and the sum with a zero point cannot overflow."""


def is_safe(largest_total: float, largest_scale: float) -> bool:
    """Tell whether totals up to `largest_total` need no clamp before they are converted."""
    return largest_total * largest_scale < SAFE_STEPS


def to_bytes(
    steps: Sequence[Expr], lanes: int, requantize: Requantize, arithmetic: Arithmetic
) -> Expr:
    """Return neighbouring float32 vectors, in steps, as one vector of bytes."""
    total = lanes * len(steps)
    dtype = requantize.dtype
    if arithmetic == "neon" and lanes == 4 and len(steps) in (1, 2, 4):
        whole = [aarch64.convert_to_nearest(step) for step in steps]
        result = aarch64.narrow(whole, requantize.zero_point, dtype)
    else:
        joined = join(steps, lanes)
        if requantize.may_overflow:
            limit = constant(SAFE_STEPS, "float32", total)
            joined = T.max(T.min(joined, limit), constant(-SAFE_STEPS, "float32", total))
        if arithmetic == "x86" and total in (4, 8, 16):
            numbers = x86.convert_to_nearest(joined, total)
        else:
            suffix = f"x{total}" if total > 1 else ""
            numbers = tirx.Cast(f"int32{suffix}", T.nearbyint(joined))
        result = x86.narrow(numbers, requantize.zero_point, dtype, total)
    return _bounded(result, requantize, total)


def to_bytes_by_four(steps: Sequence[Expr], lanes: int, requantize: Requantize) -> Expr:
    """Return four float32 vectors, in steps, as one vector of bytes on x86.

    In each 128 bits lie four bytes of every vector in turn; see `x86.narrow_four`.
    """
    if requantize.may_overflow:
        limit = constant(SAFE_STEPS, "float32", lanes)
        least = constant(-SAFE_STEPS, "float32", lanes)
        steps = [T.max(T.min(step, limit), least) for step in steps]
    whole = [x86.convert_to_nearest(step, lanes) for step in steps]
    result = x86.narrow_four(whole, requantize.zero_point, requantize.dtype, lanes)
    return _bounded(result, requantize, 4 * lanes)


def _bounded(values: Expr, requantize: Requantize, lanes: int) -> Expr:
    """Return bytes within the bounds."""
    if requantize.is_full_range:
        return values
    least = integer(requantize.low, requantize.dtype, lanes)
    greatest = integer(requantize.high, requantize.dtype, lanes)
    return tirx.Max(tirx.Min(values, greatest), least)


def store_narrow(y: Memory, index: Expr, value: Expr, lanes: int, valid: int) -> None:
    """Store the first `valid` of `lanes` neighbouring lanes, in as few pieces as there are."""
    if valid >= lanes:
        y.store(index, value, lanes)
        return
    start, width = 0, lanes
    while start < valid:
        while width > valid - start:
            width //= 2
        piece = part(value, start, width) if width > 1 else tirx.Shuffle([value], [start])
        y.store(index + start, piece, width)
        start += width


def store_rows(
    y: Memory,
    indices: Sequence[Expr],
    totals: Sequence[Sequence[Expr]],
    scales: Sequence[Expr],
    lanes: int,
    valid: int,
    requantize: Requantize | None,
    arithmetic: Arithmetic,
) -> None:
    """Store rows of int32 totals, scaled and requantized; of each the first `valid` lanes alone.

    `totals[r]` are the vectors of row r, which begins at `indices[r]`. Without `requantize` the
    scaled totals are stored as float32. Vectors of four that are left over at the end of rows are
    narrowed together; on x86 so are any four whole vectors.
    """
    singles: list[tuple[Expr, Expr]] = []
    whole: list[tuple[int, Expr, Expr]] = []
    for r, (index, row) in enumerate(zip(indices, totals, strict=True)):
        steps = [
            widen(total, "float32", lanes) * scale for total, scale in zip(row, scales, strict=True)
        ]
        first = 0
        if requantize is not None and arithmetic == "x86" and lanes in (4, 8, 16):
            first = min(len(steps), valid // lanes)
            whole += [(r, index + v * lanes, steps[v]) for v in range(first)]
        for count in group_sizes(len(steps) - first, lanes, arithmetic):
            at, left = index + first * lanes, valid - first * lanes
            group = steps[first : first + count]
            first += count
            if left <= 0:
                continue
            if requantize is None:
                store_narrow(y, at, join(group, lanes), lanes * count, left)
            elif count == 1 and lanes == 4 and arithmetic == "neon" and left >= lanes:
                singles.append((at, group[0]))
            else:
                value = to_bytes(group, lanes, requantize, arithmetic)
                store_narrow(y, at, value, lanes * count, left)
    assert requantize is not None or not singles
    if requantize is not None and whole:
        _store_whole(y, whole, lanes, requantize)
    done = 0
    for count in group_sizes(len(singles), 4, arithmetic):
        together = singles[done : done + count]
        done += count
        if requantize is not None:
            value = to_bytes([step for _, step in together], 4, requantize, arithmetic)
            _store_fours(y, [at for at, _ in together], value)


def _store_whole(
    y: Memory, vectors: Sequence[tuple[int, Expr, Expr]], lanes: int, requantize: Requantize
) -> None:
    """Store float32 vectors (row, index, steps) as bytes, narrowed four at a time.

    One instruction more sorts the bytes of the four, whichever rows they are of.
    """
    for start in range(0, len(vectors), 4):
        group = vectors[start : start + 4]
        if len(group) == 1:
            _, at, steps = group[0]
            y.store(at, to_bytes([steps], lanes, requantize, "x86"), lanes)
            continue
        padded = [*group, *[group[-1]] * (4 - len(group))]
        value = to_bytes_by_four([steps for _, _, steps in padded], lanes, requantize)
        if lanes > 4:
            order = [4 * block + v for v in range(4) for block in range(lanes // 4)]
            words = tirx.Shuffle([same_bits(value, f"int32x{lanes}")], order)
            value = same_bits(words, f"{y.dtype}x{4 * lanes}")
        first = 0
        while first < len(group):
            # Neighbours of a row are stored together.
            count = sum(row == group[first][0] for row, _, _ in group[first:])
            count = {3: 2}.get(count, count)
            y.store(group[first][1], part(value, first * lanes, count * lanes), count * lanes)
            first += count


def _store_fours(y: Memory, indices: Sequence[Expr], value: Expr) -> None:
    """Store each four lanes of bytes at an index of their own, as words of 32 bits."""
    count = len(indices)
    words = same_bits(value, f"int32x{count}" if count > 1 else "int32")
    for number, at in enumerate(indices):
        word = tirx.Shuffle([words], [number]) if count > 1 else words
        y.store(at, same_bits(word, f"{y.dtype}x4"), 4)


def group_sizes(vectors: int, lanes: int, arithmetic: Arithmetic) -> list[int]:
    """Return how many vectors to narrow together: 16 lanes at once, and powers of two."""
    most = 1 if arithmetic == "plain" else max(1, 16 // lanes)
    sizes = []
    while vectors:
        while most > vectors:
            most //= 2
        sizes.append(most)
        vectors -= most
    return sizes
