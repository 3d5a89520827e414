"""The left operand of an integer product, laid out for the instruction that multiplies it.

A pass over the rows brings them into tiles, fills the depth up to whole steps, and makes int8 of
uint8 or the reverse where the instruction wants the other: q and q - 128 are the same byte but for
its highest bit, and the difference, 128 times the sum of the weights, is in the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tvm_mobilenet._tvm import T, tirx
from tvm_mobilenet.schedule.emit import Expr, Memory, Registers
from tvm_mobilenet.schedule.intrinsics.vectors import integer, join, part, same_bits, widen

__all__ = ["CHUNK", "ByteRows", "GroupedRows", "PlainRows", "RowLayout", "Rows"]

CHUNK = 16
"""Bytes of a row that are moved at once."""


@dataclass(frozen=True)
class Rows:
    """A matrix of bytes in memory, row after row."""

    memory: Memory
    stride: int
    """Bytes from one row to the next."""
    depth: int
    """Bytes of a row that count; a multiple of 4."""

    def chunk(self, row: Expr, at: Expr, count: int, dtype: str) -> Expr:
        """Read `count` bytes of a row as 16 of `dtype`; what is missing is 0."""
        value = self.memory.load(row * self.stride + at, count)
        pieces = [value]
        width = count
        while width < CHUNK:
            # Zeros of the same width double it; 12 bytes are 8 and 4 of them.
            pieces.append(integer(0, self.memory.dtype, width))
            value = join(pieces, width)
            pieces, width = [value], 2 * width
        return _as_dtype(value, self.memory.dtype, dtype)

    def tail(self, row: Expr, at: Expr, count: int, dtype: str) -> Expr:
        """Read the last 4, 8 or 12 bytes of a row as 16 of `dtype`."""
        if count != 12:
            return self.chunk(row, at, count, dtype)
        start = row * self.stride + at
        eight, four = self.memory.load(start, 8), self.memory.load(start + 8, 4)
        rest = join([four, integer(0, self.memory.dtype, 4)], 4)
        return _as_dtype(join([eight, rest], 8), self.memory.dtype, dtype)


def _as_dtype(value: Expr, have: str, want: str) -> Expr:
    """Return 16 bytes as the wanted dtype, moved by 128 where the signedness differs."""
    if have == want:
        return value
    flipped = value ^ integer(128 if have == "uint8" else -128, have, CHUNK)
    return same_bits(flipped, f"{want}x{CHUNK}")


class RowLayout(Protocol):
    """Where the bytes of packed rows lie, and how they get there."""

    @property
    def dtype(self) -> str:
        """Element type of the packed memory."""

    def elements(self, rows: int) -> int:
        """Return the elements that `rows` rows take."""

    def pack(self, source: Rows, row: Expr, packed: Memory, tile: Expr, rows: int) -> None:
        """Write tile `tile` of `rows` rows, from `row` of the source on."""


@dataclass(frozen=True)
class GroupedRows:
    """Rows side by side in a vector: 4 rows of 4 bytes (SDOT) or 2 rows of 8 (SMMLA).

    Tiles follow each other; in a tile, blocks of 16 bytes of the depth; in a block, groups of rows;
    in a group, the steps; in a step, the rows. The last tile and its last group are padded.
    """

    tile_rows: int
    depth: int
    step: int
    """Bytes of the depth in one lane group: 4 or 8."""
    dtype: str = "int32"

    @property
    def rows_in_vector(self) -> int:
        """Rows of one group."""
        return CHUNK // self.step

    @property
    def groups(self) -> int:
        """Groups of a tile."""
        return math.ceil(self.tile_rows / self.rows_in_vector)

    @property
    def steps(self) -> int:
        """Steps in 16 bytes."""
        return CHUNK // self.step

    @property
    def block(self) -> int:
        """32-bit words of one block."""
        return self.groups * self.steps * 4

    @property
    def tile(self) -> int:
        """32-bit words of one tile."""
        return math.ceil(self.depth / CHUNK) * self.block

    def elements(self, rows: int) -> int:
        """Return the 32-bit words that `rows` rows take."""
        return math.ceil(rows / self.tile_rows) * self.tile

    def at(self, tile: Expr, block: Expr, group: int, step: int) -> Expr:
        """Return where the vector of a group and a step lies."""
        return tile * self.tile + block * self.block + (group * self.steps + step) * 4

    def pack(self, source: Rows, row: Expr, packed: Memory, tile: Expr, rows: int) -> None:
        """Write one tile; rows that are missing in a group hold what its last one does."""
        full, rest = divmod(source.depth, CHUNK)

        def block(index: Expr, count: int) -> None:
            for first in range(0, rows, self.rows_in_vector):
                present = min(self.rows_in_vector, rows - first)
                read = source.chunk if count == CHUNK else source.tail
                words = Registers(present, "int32", 4)
                for r in range(present):
                    value = read(row + first + r, index * CHUNK, count, "int8")
                    words[r] = same_bits(value, "int32x4")
                padded = [words[min(r, present - 1)] for r in range(self.rows_in_vector)]
                width = self.step // 4
                order = [
                    4 * r + width * step + word
                    for step in range(self.steps)
                    for r in range(self.rows_in_vector)
                    for word in range(width)
                ]
                at = self.at(tile, index, first // self.rows_in_vector, 0)
                packed.store(at, tirx.Shuffle(padded, order), 4 * self.steps)

        if full:
            with T.serial(0, full) as index:
                block(index, CHUNK)
        if rest:
            block(full, rest)


@dataclass(frozen=True)
class ByteRows:
    """Chunks of a tile's rows one after the other: tile, chunk, row, `chunk` bytes of int8.

    A last chunk of 16 bytes takes what whole chunks leave over.
    """

    tile_rows: int
    depth: int
    chunk: int
    """16 or 32."""
    dtype: str = "int8"

    @property
    def full(self) -> int:
        """Whole chunks; what 16 bytes more cover is in `rest`."""
        return (math.ceil(self.depth / CHUNK) * CHUNK) // self.chunk

    @property
    def rest(self) -> bool:
        """Whether a chunk of which 16 bytes count follows the whole ones."""
        return math.ceil(self.depth / CHUNK) * CHUNK % self.chunk != 0

    @property
    def tile(self) -> int:
        """Bytes of one tile."""
        return self.tile_rows * math.ceil(self.depth / self.chunk) * self.chunk

    def elements(self, rows: int) -> int:
        """Return the bytes that `rows` rows take."""
        return math.ceil(rows / self.tile_rows) * self.tile

    def pack(self, source: Rows, row: Expr, packed: Memory, tile: Expr, rows: int) -> None:
        """Write one tile."""
        halves = self.chunk // CHUNK
        pieces, left = divmod(source.depth, CHUNK)

        def piece(r: int, chunk: Expr, half: int, count: int) -> None:
            at = chunk * self.chunk + half * CHUNK
            read = source.chunk if count == CHUNK else source.tail
            value = read(row + r, at, count, "int8")
            target = tile * self.tile + chunk * (self.tile_rows * self.chunk)
            packed.store(target + r * self.chunk + half * CHUNK, value, CHUNK)

        whole = pieces // halves
        if whole:
            with T.serial(0, whole) as chunk:
                for r in range(rows):
                    for half in range(halves):
                        piece(r, chunk, half, CHUNK)
        # What is left are up to two pieces: one of 16 bytes, and one that is filled up.
        remaining = [CHUNK] * (pieces % halves) + ([left] if left else [])
        for number, count in enumerate(remaining):
            chunk, half = whole + number // halves, number % halves
            for r in range(rows):
                piece(r, chunk, half, count)


@dataclass(frozen=True)
class PlainRows:
    """Rows as they lie, of the signedness that is wanted; packed only if they are not."""

    stride: int
    """Elements from one row to the next."""
    dtype: str

    def elements(self, rows: int) -> int:
        """Return the elements that `rows` rows take."""
        return rows * self.stride

    def pack(self, source: Rows, row: Expr, packed: Memory, tile: Expr, rows: int) -> None:
        """Write `rows` rows of tile `tile`."""
        del tile
        for r in range(rows):
            target = (row + r) * self.stride
            self._row(source, row + r, packed, target)

    def _row(self, source: Rows, row: Expr, packed: Memory, target: Expr) -> None:
        full, rest = divmod(source.depth, CHUNK)
        if full:
            with T.serial(0, full) as index:
                at = index * CHUNK
                value = source.chunk(row, at, CHUNK, self._bytes(source))
                packed.store(target + at, self._element(value, CHUNK), CHUNK)
        start = full * CHUNK
        for width in (8, 4):
            if rest >= width:
                value = source.chunk(row, start, width, self._bytes(source))
                packed.store(target + start, self._element(part(value, 0, width), width), width)
                start, rest = start + width, rest - width

    def _bytes(self, source: Rows) -> str:
        return self.dtype if self.dtype in ("int8", "uint8") else source.memory.dtype

    def _element(self, value: Expr, lanes: int) -> Expr:
        return value if self.dtype in ("int8", "uint8") else widen(value, self.dtype, lanes)
