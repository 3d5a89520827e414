"""What kernels for a GPU are written in, beside `tvm_mobilenet.schedule.emit`: grids and registers.

The last tile along a dimension is moved back to end at the border, so there is no code for
remainders: what two work-items both compute, both store with the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tvm_mobilenet._tvm import IRBuilder, PrimFunc, T, buffer_data, tirx
from tvm_mobilenet.schedule.emit import Expr, KernelWriter, Memory, when

__all__ = [
    "Argument",
    "GpuRegisters",
    "cast",
    "element",
    "grid",
    "tile_start",
    "vector_type",
    "write_gpu_kernel",
]


def vector_type(dtype: str, lanes: int) -> str:
    """Return TVM's name for a vector of `lanes` elements."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


class GpuRegisters:
    """`count` vectors of `lanes` elements, private to a work-item and kept in registers.

    Indexed by Python integers alone: a private array that is indexed at run time lies in memory.
    """

    def __init__(self, count: int, dtype: str, lanes: int) -> None:
        self.lanes = lanes
        self._buffers = [
            T.alloc_buffer((1,), vector_type(dtype, lanes), scope="local") for _ in range(count)
        ]

    def __getitem__(self, index: int) -> Expr:
        return self._buffers[index][0]

    def __setitem__(self, index: int, value: Expr) -> None:
        T.buffer_store(self._buffers[index], value, [0])


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel: a tensor by its shape, seen flat inside."""

    name: str
    shape: Sequence[int]
    dtype: str


def write_gpu_kernel(
    arguments: Sequence[Argument], body: Callable[[KernelWriter], None]
) -> PrimFunc:
    """Write a kernel: `body` is called once, inside the function.

    The last argument is the output.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        buffers = [(a, T.arg(a.name, T.buffer(tuple(a.shape), a.dtype))) for a in arguments]
        with T.sblock("root"):
            T.reads()
            T.writes()
            memories = {}
            for argument, buffer in buffers:
                flat = T.decl_buffer(
                    (math.prod(argument.shape),), argument.dtype, data=buffer_data(buffer)
                )
                memories[argument.name] = Memory(flat, argument.dtype)
            body(KernelWriter(arguments[-1].dtype, memories))
    return builder.get()


@contextmanager
def grid(items: Sequence[int], group: Sequence[int]) -> Iterator[list[Expr]]:
    """Run what is written inside once for each work-item; yields its index along each dimension.

    `items` are the work-items wanted along x, y and z, `group` those of a work-group; the grid is
    rounded up to whole groups, and what is too much does nothing.
    """
    with ExitStack() as stack:
        blocks, threads = [], []
        for axis, count, size in zip("xyz", items, group, strict=False):
            blocks.append(_bind(stack, f"blockIdx.{axis}", -(-count // size)))
        for axis, size in zip("xyz", group, strict=False):
            threads.append(_bind(stack, f"threadIdx.{axis}", size))
        indices, conditions = [], []
        for count, size, block, thread in zip(items, group, blocks, threads, strict=True):
            index = block * size + thread
            indices.append(index)
            if count % size:
                conditions.append(index < count)
        stack.enter_context(when(tirx.all(*conditions) if conditions else None))
        yield indices


def _bind(stack: ExitStack, thread: str, extent: int) -> Expr:
    # TVM gives a launch tag of extent 1 no parameter; binding x alone keeps every kernel a kernel.
    if extent == 1 and not thread.endswith(".x"):
        return 0
    return stack.enter_context(T.thread_binding(0, extent, thread=thread))


def tile_start(index: Expr, tile: int, extent: int) -> Expr:
    """Return where tile `index` begins when the last one is moved back to end at `extent`."""
    if extent == tile:
        return 0
    return index * tile if extent % tile == 0 else T.min(index * tile, extent - tile)


def cast(value: Expr, dtype: str, source: str, lanes: int) -> Expr:
    """Return a vector of `source` elements as one of `dtype` elements."""
    return value if dtype == source else value.astype(vector_type(dtype, lanes))


def element(vector: Expr, lane: int, lanes: int) -> Expr:
    """Return one element of a vector as a scalar."""
    return vector if lanes == 1 else tirx.Shuffle([vector], [lane])
