"""OpenCL modules written by hand: what a compiled library carries, without a compiler."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["BOOL", "BUFFER", "FLOAT16", "FLOAT32", "INT8", "INT32", "INT64", "UINT8", "UINT32"]

# Argument types as DLPack numbers them: code, bits, lanes.
INT8, INT32, INT64 = (0, 8, 1), (0, 32, 1), (0, 64, 1)
UINT8, UINT32 = (1, 8, 1), (1, 32, 1)
FLOAT16, FLOAT32 = (2, 16, 1), (2, 32, 1)
BUFFER = (3, 64, 1)
BOOL = (6, 8, 1)


class Kernel(NamedTuple):
    """How a kernel is called."""

    arguments: Sequence[tuple[int, int, int]]
    tags: Sequence[str] = ("blockIdx.x", "threadIdx.x")


def module_bytes(source: str, kernels: Mapping[str, Kernel], code: str = "cl") -> bytes:
    """Spell a module as TVM 0.27 saves it."""
    parts = [_text(code), struct.pack("<Q", len(kernels))]
    for name, kernel in kernels.items():
        parts += [_text(name), _text(name), struct.pack("<Q", len(kernel.arguments))]
        parts += [struct.pack("<BBH", *argument) for argument in kernel.arguments]
        parts += [struct.pack("<Q", len(kernel.tags)), *map(_text, kernel.tags)]
        parts.append(struct.pack("<Q", 0))
    return b"".join([*parts, _text(source)])


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def load(data: bytes) -> Any:
    """Make a module of its bytes."""
    import tvm_ffi

    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.opencl")(data)


def make(source: str, **kernels: Kernel) -> Any:
    """Make a module; each kernel's source begins with the line that TVM writes."""
    return load(module_bytes(source, kernels))


def buffer(tensor: Any) -> ctypes.c_void_p:
    """Return a tensor as the kernels' functions take it."""
    return ctypes.c_void_p(tensor.data_ptr())
