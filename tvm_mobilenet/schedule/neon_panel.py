"""The inner loop of a product of packed rows on AArch64, in assembly.

LLVM loads vectors as pairs. The instruction set loads four at once (`ld1 {v0.4s-v3.4s}, [x], #64`)
into neighbouring registers, and moves the pointer on: half of the loads and no addresses. LLVM's
allocator cannot be made to keep 32 registers that full, so this writes the whole column of tiles,
from the bias to the stores, as one piece of inline assembly with its registers fixed. It comes into
a kernel as a function of LLVM's own language, which is inlined.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tvm_mobilenet.schedule.neon_tile import GROUP, REGISTERS, VECTOR_BYTES, NeonTile
from tvm_mobilenet.schedule.workload import Epilogue

__all__ = ["PanelCode", "panel_code"]


@dataclass(frozen=True)
class PanelCode:
    """A function in LLVM's language, and its name.

    It takes the addresses of packed rows, weights, output, and of bias and residual where there
    are any, and returns 0.
    """

    name: str
    text: str


@lru_cache(maxsize=4096)
def panel_code(
    *,
    rows: int,
    tile_rows: int,
    vectors: int,
    depth: int,
    step: int,
    columns: int,
    epilogue: Epilogue,
    dtype: str = "float32",
) -> PanelCode:
    """Write what computes `rows` packed rows of one panel of `vectors` full vectors.

    Args:
        rows: rows of the output, in tiles of `tile_rows`, as they are packed.
        tile_rows: rows of a tile.
        vectors: vectors of the panel.
        depth: steps of the reduction, a multiple of a vector's lanes.
        step: steps written out in the loop, a multiple too; fewer where offsets would not fit.
        columns: elements from one row of the output to the next, and of the residual.
        epilogue: what is applied before the stores.
        dtype: of everything: float32, or float16 where the processor computes with it.
    """
    if not NeonTile(tile_rows, vectors, _FORMATS[dtype].lanes).is_possible:
        raise AssertionError(f"a tile of {tile_rows} rows x {vectors} vectors has no registers")
    writer = _Writer(tile_rows, vectors, depth, step, columns, epilogue, _FORMATS[dtype])
    lines = list(writer.panel(rows))
    body = "\\0A".join(lines)
    names = ["x", "w", "y", *writer.extra]
    operands = ", ".join(f"ptr %{name}" for name in names)
    clobbers = [f"v{n}" for n in range(REGISTERS)]
    clobbers += [f"x{n}" for n in writer.scratch]
    constraints = ["r"] * len(names) + [f"~{{{name}}}" for name in (*clobbers, "memory", "cc")]
    name = "packed_panel_" + hashlib.sha256(body.encode()).hexdigest()[:16]
    text = (
        f"define i32 @{name}({operands}) {{\n"
        f'  call void asm sideeffect "{body}", "{",".join(constraints)}"({operands})\n'
        "  ret i32 0\n}\n"
    )
    return PanelCode(name, text)


@dataclass(frozen=True)
class _Format:
    """How a type of float is spelled."""

    lanes: int
    vector: str
    lane: str
    codes: tuple[str, str]
    """Of `struct`: float and unsigned integer of its size."""

    def encode(self, value: float) -> int:
        """Return a number's bits."""
        as_float, as_bits = self.codes
        (bits,) = struct.unpack(f"<{as_bits}", struct.pack(f"<{as_float}", value))
        return int(bits)

    def is_short(self, value: float) -> bool:
        """Tell whether `fmov` encodes a number: four bits of mantissa, an exponent of -3 to 4."""
        bits = _FORMATS["float32"].encode(value)
        exponent = (bits >> 23 & 0xFF) - 127
        return bits & 0x7FFFF == 0 and -3 <= exponent <= 4


_FORMATS = {
    "float32": _Format(4, "4s", "s", ("f", "I")),
    "float16": _Format(8, "8h", "h", ("e", "H")),
}


class _Writer:
    """Writes the instructions, one a line."""

    # Addresses that move: rows, weights, output, residual; then counters and constants.
    _X, _W, _Y, _R, _TILES, _STEPS, _STRIDE, _SKIP, _TEMP = range(7, 16)

    def __init__(
        self,
        tile_rows: int,
        vectors: int,
        depth: int,
        step: int,
        columns: int,
        epilogue: Epilogue,
        form: _Format,
    ) -> None:
        self._tile_rows = tile_rows
        self._vectors = vectors
        self._depth = depth
        self._step = step
        self._row_bytes = columns * VECTOR_BYTES // form.lanes
        self._form = form
        self._epilogue = epilogue
        self.scratch = range(self._X, self._TEMP + 1)
        self.extra = [
            name for name, on in (("bias", epilogue.bias), ("residual", epilogue.residual)) if on
        ]

    def panel(self, rows: int) -> Iterator[str]:
        """Yield the code of all tiles of a panel, the last of fewer rows where there is a rest."""
        full, rest = divmod(rows, self._tile_rows)
        yield f"mov x{self._X}, $0"
        yield f"mov x{self._Y}, $2"
        if self._epilogue.residual:
            yield f"mov x{self._R}, ${2 + len(self.extra)}"
        # Stores of a row of more than four vectors are two, and the first has moved on.
        done = (self._vectors - 1) // 4 * 4 * VECTOR_BYTES
        yield from _number(f"x{self._STRIDE}", self._row_bytes - done)
        if full:
            if full > 1:
                yield from _number(f"x{self._TILES}", full)
                yield "1:"
            yield from self._tile(self._tile_rows)
            if full > 1:
                yield f"subs x{self._TILES}, x{self._TILES}, #1"
                yield "b.ne 1b"
        if rest:
            yield from self._tile(rest)

    def _tile(self, rows: int) -> Iterator[str]:
        tile = NeonTile(rows, self._vectors, self._form.lanes)
        layout = math.ceil(self._tile_rows / GROUP)
        first = REGISTERS - tile.accumulators
        yield f"mov x{self._W}, $1"
        skipped = (layout - tile.groups) * GROUP * VECTOR_BYTES
        if skipped:
            yield from _number(f"x{self._SKIP}", skipped + GROUP * VECTOR_BYTES)
        for r in range(rows):
            yield from self._begin_row(first + r * self._vectors)
        step = min(self._step, tile.most_steps(layout), self._depth)
        loops, rest = divmod(self._depth, step)
        if loops > 1:
            yield from _number(f"x{self._STEPS}", loops)
            yield "2:"
        if loops:
            yield from self._steps(tile, step, layout)
        if loops > 1:
            yield f"subs x{self._STEPS}, x{self._STEPS}, #1"
            yield "b.ne 2b"
        if rest:
            yield from self._steps(tile, rest, layout)
        yield from self._finish(tile, first)

    def _begin_row(self, register: int) -> Iterator[str]:
        """Have the accumulators of a row begin at the bias: a load is as cheap as a copy."""
        for at in range(0, self._vectors, 4):
            count = min(4, self._vectors - at)
            if not self._epilogue.bias:
                yield from (f"movi v{register + at + i}.2d, #0" for i in range(count))
            elif at == 0:
                yield f"ld1 {self._list(register, count)}, [$3]"
            else:
                yield f"add x{self._TEMP}, $3, #{at * VECTOR_BYTES}"
                yield f"ld1 {self._list(register + at, count)}, [x{self._TEMP}]"

    def _steps(self, tile: NeonTile, steps: int, layout: int) -> Iterator[str]:
        """Multiply and add `steps` steps of the depth."""
        held, vectors, chunk = tile.held, tile.vectors, tile.chunk
        deep = tile.steps_per_register
        first = REGISTERS - tile.accumulators
        weights = held * tile.groups
        total = steps * vectors
        loaded = 0

        def load_weights(upto: int) -> Iterator[str]:
            nonlocal loaded
            while loaded < min(upto, math.ceil(total / chunk)):
                count = min(chunk, total - loaded * chunk)
                register = weights + loaded % tile.buffers * chunk
                yield f"ld1 {self._list(register, count)}, [x{self._W}], #{count * VECTOR_BYTES}"
                loaded += 1

        yield from load_weights(1)
        for group in range(tile.groups):
            yield self._load_rows(tile, group, 0, layout)
        for s in range(steps):
            taken = [s * vectors + v for v in range(vectors)]
            segments = [
                [n for n in taken if n // chunk == part]
                for part in sorted({n // chunk for n in taken})
            ]
            for segment in segments:
                current = segment[0] // chunk
                yield from load_weights(current + tile.buffers)
                is_last = segment is segments[-1] and (s + 1) % (held * deep) == 0 and s + 1 < steps
                for group in range(tile.groups):
                    x = group * held + s // deep % held
                    rows = range(group * GROUP, min(tile.rows, (group + 1) * GROUP))
                    for n in segment:
                        w = weights + current % tile.buffers * chunk + n % chunk
                        for r in rows:
                            accumulator = first + r * vectors + n % vectors
                            lane = f"v{x}.{self._form.lane}[{s % deep * GROUP + r % GROUP}]"
                            yield f"fmla {self._vector(accumulator)}, {self._vector(w)}, {lane}"
                    if is_last:
                        yield self._load_rows(tile, group, s + 1, layout)
        if held == 2:
            blocks = steps // self._form.lanes
            yield f"add x{self._X}, x{self._X}, #{blocks * layout * GROUP * VECTOR_BYTES}"

    def _load_rows(self, tile: NeonTile, group: int, step: int, layout: int) -> str:
        """Return what loads the next steps of a group of four rows."""
        held, deep = tile.held, tile.steps_per_register
        register = group * held
        if held == 4:
            is_last = group == tile.groups - 1 and tile.groups < layout
            move = f"x{self._SKIP}" if is_last else f"#{GROUP * VECTOR_BYTES}"
            return f"ld1 {self._list(register, 4)}, [x{self._X}], {move}"
        block, rest = divmod(step, self._form.lanes)
        at = (block * layout + group) * GROUP * VECTOR_BYTES + rest // deep * VECTOR_BYTES
        return f"ldp q{register}, q{register + 1}, [x{self._X}, #{at}]"

    def _finish(self, tile: NeonTile, first: int) -> Iterator[str]:
        """Apply the epilogue and store, row by row."""
        epilogue, vectors = self._epilogue, self._vectors
        constants: dict[str, int] = {}
        wanted: dict[str, float] = {}
        if epilogue.activation == "hard-swish":
            wanted |= {"sixth": 1 / 6, "half": 0.5, "zero": 0.0, "one": 1.0}
        if epilogue.low != -math.inf:
            wanted["low"] = epilogue.low
        if epilogue.high != math.inf:
            wanted["high"] = epilogue.high
        if epilogue.residual:
            # Their registers are the constants' afterwards.
            for r in range(tile.rows):
                for at in range(0, vectors, 4):
                    count = min(4, vectors - at)
                    is_last = at + count == vectors
                    move = f"x{self._STRIDE}" if is_last else f"#{4 * VECTOR_BYTES}"
                    yield f"ld1 {self._list(0, count)}, [x{self._R}], {move}"
                    for i in range(count):
                        n = first + r * vectors + at + i
                        yield f"fadd {self._vector(n)}, {self._vector(n)}, {self._vector(i)}"
        for register, (name, value) in enumerate(wanted.items()):
            yield from self._constant(register, value)
            constants[name] = register
        temporary = len(constants)
        for r in range(tile.rows):
            for v in range(vectors):
                yield from self._activate(first + r * vectors + v, temporary, constants)
            for at in range(0, vectors, 4):
                count = min(4, vectors - at)
                is_last = at + count == vectors
                move = f"x{self._STRIDE}" if is_last else f"#{4 * VECTOR_BYTES}"
                yield f"st1 {self._list(first + r * vectors + at, count)}, [x{self._Y}], {move}"

    def _activate(self, n: int, temporary: int, constants: dict[str, int]) -> Iterator[str]:
        x = self._vector(n)
        named = {name: self._vector(register) for name, register in constants.items()}
        if "sixth" in named:
            t = self._vector(temporary)
            yield f"fmul {t}, {x}, {named['sixth']}"
            yield f"fadd {t}, {t}, {named['half']}"
            yield f"fmax {t}, {t}, {named['zero']}"
            yield f"fmin {t}, {t}, {named['one']}"
            yield f"fmul {x}, {x}, {t}"
        if "low" in named:
            yield f"fmax {x}, {x}, {named['low']}"
        if "high" in named:
            yield f"fmin {x}, {x}, {named['high']}"

    def _constant(self, register: int, value: float) -> Iterator[str]:
        """Put a float into all lanes of a register."""
        bits = self._form.encode(value)
        if bits == 0:
            yield f"movi v{register}.2d, #0"
            return
        if self._form.is_short(value):
            yield f"fmov {self._vector(register)}, #{value:.8f}"
            return
        yield from _number(f"x{self._TEMP}", bits)
        yield f"dup {self._vector(register)}, w{self._TEMP}"

    def _vector(self, register: int) -> str:
        return f"v{register}.{self._form.vector}"

    def _list(self, first: int, count: int) -> str:
        return "{" + ", ".join(self._vector(first + i) for i in range(count)) + "}"


def _number(register: str, value: int) -> Iterator[str]:
    """Put a number into a register, 16 bits at a time; negative ones as their complement."""
    if value < 0:
        if value >= -0x10000:
            yield f"movn {register}, #{~value}"
            return
        value &= 0xFFFFFFFFFFFFFFFF
    parts = [(shift, value >> shift & 0xFFFF) for shift in range(0, 64, 16)]
    used = [part for part in parts if part[1]] or parts[:1]
    for position, (shift, part) in enumerate(used):
        name = "movk" if position else "movz"
        yield f"{name} {register}, #{part}" + (f", lsl #{shift}" if shift else "")
