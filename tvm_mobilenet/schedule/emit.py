"""The few words that kernels are written in: vectors, register files, tiles and loops in TIR.

Kernels are written straight into TIR, unrolled where a register is meant: a `Registers` file is a
local buffer of vectors that is only ever indexed by Python integers, so that LLVM keeps each
element in a register. Memory is seen flat; an index counts elements.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet._tvm import (
    IRBuilder,
    PointerType,
    PrimFunc,
    PrimType,
    T,
    buffer_data,
    tirx,
    tvm,
)
from tvm_mobilenet.schedule.workload import Epilogue

__all__ = [
    "Expr",
    "KernelWriter",
    "Memory",
    "Registers",
    "apply_epilogue",
    "broadcast",
    "by_lane",
    "call_llvm",
    "constant",
    "holding",
    "lowering",
    "overlapping_start",
    "split_lanes",
    "stored_as",
    "task_loop",
    "when",
    "write_kernel",
]

Expr = Any
"""A TIR expression or a Python integer."""


def lowering() -> Any:
    """Return the context in which kernels must be lowered.

    TVM would let buffers whose lives do not overlap share memory, a register of four lanes and one
    of two among them, and then fail on the access of another width.
    """
    return tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True})


_ANY_EXTENT = 1 << 24
"""Declared for memory from an address on; nothing is checked against it."""


_storage: ContextVar[str | None] = ContextVar("_storage", default=None)


@contextmanager
def stored_as(dtype: str | None) -> Iterator[None]:
    """Have the kernels that are written inside keep their tensors in `dtype`.

    They compute in their own type: every load and every store converts. Biases stay in it.
    """
    token = _storage.set(dtype)
    try:
        yield
    finally:
        _storage.reset(token)


class Memory:
    """A tensor seen as a flat array of `dtype`, which may be stored as another."""

    def __init__(self, buffer: Any, dtype: str, stored: str | None = None) -> None:
        self.buffer = buffer
        self.dtype = dtype
        self._stored = stored or dtype

    def load(self, index: Expr, lanes: int = 1) -> Expr:
        """Read `lanes` neighbouring elements."""
        value = self.buffer[index if lanes == 1 else tirx.Ramp(index, 1, lanes)]
        if self._stored == self.dtype:
            return value
        return value.astype(self.dtype if lanes == 1 else f"{self.dtype}x{lanes}")

    def at(self, index: Expr) -> Memory:
        """Return the memory from `index` on, its address computed once.

        Only for what is read alone, or written alone, in a kernel: LLVM is told that memory of
        different names does not overlap.
        """
        address = T.Bind(tirx.address_of(self.buffer[index]))
        buffer = T.decl_buffer((_ANY_EXTENT,), self._stored, data=address)
        return Memory(buffer, self.dtype, self._stored)

    def address(self, index: Expr) -> Expr:
        """Return the address of an element, for code that knows its type."""
        if self._stored != self.dtype:
            raise AssertionError(f"{self.dtype} stored as {self._stored} is read by address")
        return tirx.address_of(self.buffer[index])

    def prefetch(self, index: Expr, *, into_l1: bool = False) -> None:
        """Ask for the cache line of an element to come into the L2 cache, or all; never faults."""
        # Operands of llvm.prefetch: for reading, locality of 3, data.
        address = tirx.address_of(self.buffer[index])
        T.evaluate(tirx.call_intrin("", "tirx.prefetch", address, 0, 3 if into_l1 else 2, 1))

    def store(self, index: Expr, value: Expr, lanes: int = 1) -> None:
        """Write `lanes` neighbouring elements."""
        if self._stored != self.dtype:
            value = value.astype(self._stored if lanes == 1 else f"{self._stored}x{lanes}")
        T.buffer_store(self.buffer, value, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)])


class Registers:
    """`count` vectors of `lanes` elements that live in the register file."""

    def __init__(self, count: int, dtype: str, lanes: int) -> None:
        self.lanes = lanes
        self.dtype = dtype
        vector = dtype if lanes == 1 else f"{dtype}x{lanes}"
        # One buffer each, of scope "global": TVM puts those that are small on the stack, where
        # LLVM promotes them to registers. Buffers of scope "local" become heap memory, which is
        # written back after the loops and keeps registers alive in them.
        self._buffers = [T.alloc_buffer((1,), vector) for _ in range(count)]

    def __getitem__(self, index: int) -> Expr:
        return self._buffers[index][0]

    def __setitem__(self, index: int, value: Expr) -> None:
        T.buffer_store(self._buffers[index], value, [0])


def call_llvm(name: str, text: str, addresses: Sequence[tuple[Memory, Expr]]) -> None:
    """Call a function written in LLVM's language, of addresses, that returns an int32.

    Its text comes into the kernel's module, where it is inlined.
    """
    pointers = [memory.address(index) for memory, index in addresses]
    with T.attr(0, "pragma_import_llvm", text):
        T.evaluate(T.call_extern("int32", name, *pointers))


def broadcast(value: Expr, lanes: int) -> Expr:
    """Return a vector that holds `value` in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def by_lane(vector: Expr, lane: int, lanes: int) -> Expr:
    """Return a vector that holds lane `lane` of `vector` in every lane.

    AArch64 folds it into `fmla v.4s, v.4s, v.s[lane]`.
    """
    return tirx.Shuffle([vector], [lane] * lanes)


def constant(value: float, dtype: str, lanes: int) -> Expr:
    """Return a vector that holds a constant in every lane."""
    return broadcast(tirx.FloatImm(dtype, value), lanes)


def apply_epilogue(
    value: Expr,
    epilogue: Epilogue,
    lanes: int,
    dtype: str,
    residual: Expr | None = None,
) -> Expr:
    """Return `value` after residual, activation and bounds; accumulators begin at the bias."""
    if residual is not None:
        value = value + residual
    if epilogue.activation == "hard-swish":
        sixth, half = constant(1 / 6, dtype, lanes), constant(0.5, dtype, lanes)
        gate = T.max(value * sixth + half, constant(0.0, dtype, lanes))
        value = value * T.min(gate, constant(1.0, dtype, lanes))
    elif epilogue.activation == "sigmoid":
        one = constant(1.0, dtype, lanes)
        value = one / (one + T.exp(constant(0.0, dtype, lanes) - value))
    if epilogue.low != -float("inf"):
        value = T.max(value, constant(epilogue.low, dtype, lanes))
    if epilogue.high != float("inf"):
        value = T.min(value, constant(epilogue.high, dtype, lanes))
    return value


def split_lanes(extent: int, lanes: int) -> list[tuple[int, int]]:
    """Cut `extent` elements into (offset, width) vectors: full ones, then halves for the rest.

    >>> split_lanes(24, 16)
    [(0, 16), (16, 8)]
    """
    pieces = []
    offset, width = 0, lanes
    while offset < extent:
        while width > extent - offset:
            width //= 2
        pieces.append((offset, width))
        offset += width
    return pieces


def overlapping_start(index: Expr, tile: int, extent: int) -> Expr:
    """Return where tile `index` begins when the last one is moved back to end at `extent`.

    The rows that two tiles share are computed twice and stored twice with the same value, which
    costs less than code for a remainder.
    """
    return index * tile if extent % tile == 0 else T.min(index * tile, extent - tile)


@dataclass(frozen=True)
class Parameter:
    """One argument of a kernel: a tensor by its shape, seen flat inside."""

    name: str
    shape: Sequence[int]
    dtype: str | None = None
    """Element type; None for the kernel's own, or what `stored_as` says."""


class KernelWriter:
    """Hands out the kernel's arguments and scratch memory while its body is written."""

    def __init__(self, dtype: str, memories: dict[str, Memory]) -> None:
        self.dtype = dtype
        self._memories = memories

    def __getitem__(self, name: str) -> Memory:
        return self._memories[name]

    def get(self, name: str) -> Memory | None:
        """Return the argument of that name, or None where the kernel has none."""
        return self._memories.get(name)

    def scratch(self, elements: int, dtype: str | None = None) -> Memory:
        """Allocate memory that lives as long as the block it is asked for in."""
        dtype = dtype or self.dtype
        return Memory(T.alloc_buffer((elements,), dtype, align=64), dtype)


_held: ContextVar[Mapping[int, npt.NDArray[Any]] | None] = ContextVar("held", default=None)


@contextmanager
def holding(arrays: Mapping[int, npt.NDArray[Any]]) -> Iterator[None]:
    """Have the kernels that are written within hold some of their parameters themselves.

    Those, by position, are no arguments then but read-only data of the library: for a kernel on a
    processor whose neighbours run elsewhere, and whose constants would lie there.
    """
    token = _held.set(arrays)
    try:
        yield
    finally:
        _held.reset(token)


def write_kernel(
    dtype: str, parameters: Sequence[Parameter], body: Callable[[KernelWriter], None]
) -> PrimFunc:
    """Write a kernel: `body` is called once, inside the function.

    The last parameter is the output.
    """
    held = _held.get() or {}

    def stored(parameter: Parameter) -> str:
        is_free = parameter.dtype is None and not parameter.name.startswith("bias")
        return (_storage.get() if is_free else None) or parameter.dtype or dtype

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        buffers = {
            index: T.arg(p.name, T.buffer(tuple(p.shape), stored(p)))
            for index, p in enumerate(parameters)
            if index not in held
        }
        # Relax's own passes expect the body of a function to be a block.
        with T.sblock("root"), ExitStack() as stack:
            T.reads()
            T.writes()
            memories = {}
            for index, parameter in enumerate(parameters):
                kept = stored(parameter)
                data = (
                    _read_only(held[index].astype(kept, copy=False), stack)
                    if index in held
                    else buffer_data(buffers[index])
                )
                flat = T.decl_buffer((math.prod(parameter.shape),), kept, data=data)
                memories[parameter.name] = Memory(flat, parameter.dtype or dtype, kept)
            body(KernelWriter(dtype, memories))
    return builder.get()


def _read_only(array: npt.NDArray[Any], stack: ExitStack) -> Any:
    """Put an array into the library, for what is written on the stack; returns its address."""
    data = np.ascontiguousarray(array).tobytes()
    name = "held_" + hashlib.sha256(data).hexdigest()[:16]
    spelled = "".join(map("\\{:02X}".format, data))
    text = (
        f'@{name}_data = linkonce_odr hidden constant [{len(data)} x i8] c"{spelled}", align 64\n'
        f"define linkonce_odr hidden ptr @{name}() {{\n  ret ptr @{name}_data\n}}\n"
    )
    stack.enter_context(T.attr(0, "pragma_import_llvm", text))
    return T.Bind(T.call_extern(PointerType(PrimType(str(array.dtype))), name))


def task_loop(extent: int, is_parallel: bool) -> Any:
    """Open a loop over tasks, cut among the threads if that pays."""
    return T.parallel(0, extent) if is_parallel else T.serial(0, extent)


@contextmanager
def when(condition: Expr | None) -> Iterator[None]:
    """Run what is written inside only if `condition` holds; None stands for always."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield
