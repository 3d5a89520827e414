"""A library with one small kernel in it, for whatever machine a board is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.toolchain import make_fcompile

__all__ = ["EXTENT", "FUNCTION", "build_one_kernel", "expected_values"]

FUNCTION = "scale_and_shift"
EXTENT = 1024
_SCALE, _SHIFT = 3.0, 0.5

# Machine, the target that its library is linked for, LLVM's most modest processor of the kind.
_TARGETS = {
    "aarch64": ("generic-aarch64", "generic"),
    "arm": ("generic-armv7", None),
    "x86-64": ("x86-64-avx2", "x86-64"),
}


def expected_values(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what the kernel should compute."""
    return x * np.float32(_SCALE) + np.float32(_SHIFT)


def build_one_kernel(machine: str) -> bytes:
    """Compile and link y = 3 x + 0.5 for a machine, in `library_machine`'s words.

    Raises:
        DeviceError: no target is known for the machine.
        ToolchainError: there is no linker for it.
    """
    if machine not in _TARGETS:
        known = ", ".join(_TARGETS)
        raise DeviceError(f"nothing can be compiled for {machine} boards; known: {known}")
    name, mcpu = _TARGETS[machine]
    target = load_target(name)
    if mcpu is not None:
        modest = target.tvm.model_copy(update={"mcpu": mcpu, "mattr": ()})
        target = target.model_copy(update={"tvm": modest})
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        output = Path(folder) / "kernel.so"
        _compile(target).export_library(str(output), fcompile=make_fcompile(target))
        return output.read_bytes()


def _compile(target: TargetSpec) -> Any:
    from tvm_mobilenet._tvm import IRModule, T, tvm
    from tvm_mobilenet.schedule.emit import KernelWriter, Parameter, write_kernel

    def body(kernel: KernelWriter) -> None:
        with T.serial(0, EXTENT) as index:
            value = kernel["x"].load(index, 1) * np.float32(_SCALE) + np.float32(_SHIFT)
            kernel["y"].store(index, value, 1)

    parameters = [Parameter(which, (EXTENT,)) for which in ("x", "y")]
    function = write_kernel("float32", parameters, body)
    # The name that a library's function is found by is an attribute of the function.
    named = function.with_attr("global_symbol", FUNCTION)
    return tvm.compile(IRModule({FUNCTION: named}), target=target.tvm_target())
