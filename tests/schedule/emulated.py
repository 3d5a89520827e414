"""Runs one kernel as LLVM compiles it for AArch64, under the emulator and without TVM's runtime."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi.libinfo

from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.targets import TargetSpec

needs_emulator = [
    pytest.mark.arm,
    pytest.mark.skipif(
        shutil.which("qemu-aarch64") is None,
        reason="qemu-aarch64 is not installed (Debian: qemu-user)",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed"
    ),
]
_KINDS = {"i": 0, "u": 1, "f": 2}
"""DLPack's type codes."""


def zig(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-O1"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build_runner(folder: Path) -> Path:
    """Compile `kernel_runner.c` into an object file in `folder`."""
    output = folder / "kernel_runner.o"
    source = Path(__file__).with_name("kernel_runner.c")
    includes = [tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()]
    zig([*(f"-I{include}" for include in includes), "-c", str(source), "-o", str(output)])
    return output


def run_emulated(
    function: Any,
    arguments: list[np.ndarray],
    output: np.ndarray,
    spec: TargetSpec,
    runner_object: Path,
    folder: Path,
    threads: int = 1,
) -> np.ndarray:
    """Return what a kernel writes into an array like `output`, whose contents it finds there."""
    with lowering():
        library = tvm.compile(IRModule({"main": function}), target=spec.tvm_target())

    def keep(_output: str, files: list[str], **_options: Any) -> None:
        shutil.copy(files[0], folder / "kernel.o")
        Path(_output).touch()

    library.mod.export_library(str(folder / "library.so"), fcompile=keep)
    program = folder / "program"
    zig(["-static", str(runner_object), str(folder / "kernel.o"), "-o", str(program)])
    with (folder / "arguments").open("wb") as file:
        file.write(np.int64(len(arguments) + 1).tobytes())
        for array in (*arguments, output):
            kind = [_KINDS[array.dtype.kind], 8 * array.itemsize]
            file.write(np.array([*kind, array.ndim, *array.shape], np.int64).tobytes())
            file.write(np.ascontiguousarray(array).tobytes())
    assert spec.emulation is not None
    command = ["qemu-aarch64", "-cpu", spec.emulation.qemu_cpu, str(program)]
    command += [str(folder / name) for name in ("arguments", "result")]
    done = subprocess.run(
        [*command, str(threads)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return np.fromfile(folder / "result", output.dtype).reshape(output.shape)
