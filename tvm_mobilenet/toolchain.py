"""Linking: object files to one shared library, for this machine or for a board."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import ToolchainError
from tvm_mobilenet.files import new_file, output_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvm_mobilenet.targets import TargetSpec

__all__ = [
    "COMPILER_VARIABLE",
    "compiler_driver",
    "link",
    "link_kernel",
    "make_fcompile",
    "run_compiler",
]

logger = logging.getLogger(__name__)

COMPILER_VARIABLE = "TVM_MOBILENET_CC"
"""Environment variable that names the compiler driver to link with, arguments allowed."""

_FLAGS = (
    "-shared",
    "-fPIC",
    "-Wl,--build-id=none",  # nothing in the library may depend on where or when it was made
    "-Wl,--strip-debug",
)
_LIBRARIES = ("-lm",)


def link(
    objects: Sequence[Path], output: Path, target: TargetSpec, *, compiler: str | None = None
) -> None:
    """Link `objects` into the shared library `output`, for `target`.

    The driver is `compiler`, else the one that TVM_MOBILENET_CC names, else for this machine
    the C compiler found on the path, else Zig with the target's triple and glibc version.
    The same objects give the same bytes, whatever their names. `output` appears whole or not
    at all.

    Raises:
        ToolchainError: there is no linker, or it failed.
        OutputError: `output` cannot be written.
    """
    command = compiler_driver(target, compiler)
    with new_file(output) as unfinished:
        names = [str(path) for path in objects]
        command = [*command, *_FLAGS, "-o", str(unfinished), *names, *_LIBRARIES]
        logger.debug("%s", shlex.join(command))
        run_compiler(command, target.name, output)


def link_kernel(
    objects: Sequence[Path], output: Path, target: TargetSpec, *, compiler: str | None = None
) -> None:
    """Link one kernel's objects for a process that has TVM's runtime and the C library already.

    A compiler driver takes 0.05 to 1 s to find out what a kernel does not need: start-up files and
    the C library. So Zig's LLD is called by itself, in 0.03 s; `link` where there is none, or where
    a compiler was named.

    Raises:
        ToolchainError: there is no linker, or it failed.
        OutputError: `output` cannot be written.
    """
    zig = importlib.util.find_spec("ziglang")
    if compiler or os.environ.get(COMPILER_VARIABLE) or zig is None or zig.origin is None:
        link(objects, output, target, compiler=compiler)
        return
    command = [str(Path(zig.origin).with_name("zig")), "ld.lld", "-shared", "--strip-debug"]
    command += ["-o", str(output), *map(str, objects)]
    run_compiler(command, target.name, output)


def make_fcompile(target: TargetSpec, compiler: str | None = None) -> Callable[..., None]:
    """Return `link` in the form that TVM's `export_library` takes as `fcompile`."""

    def fcompile(file_name: str, files: Sequence[str], **_options: Any) -> None:
        link([Path(name) for name in files], Path(file_name), target, compiler=compiler)

    return fcompile


def compiler_driver(target: TargetSpec, compiler: str | None = None) -> list[str]:
    """Return the command that compiles C and links for `target`, as `link` chooses it.

    Raises:
        ToolchainError: there is none, or the one that was named cannot be found.
    """
    named = compiler or os.environ.get(COMPILER_VARIABLE)
    if named:
        words = shlex.split(named)
        if shutil.which(words[0]) is None:
            raise ToolchainError(
                f"linking for {target.name}: the compiler {words[0]!r} was not found; install it, "
                f"or leave out --cc and {COMPILER_VARIABLE} to link with Zig"
            )
        return words
    if target.is_host:
        for name in ("cc", "gcc", "clang"):
            if shutil.which(name):
                return [name]
    if importlib.util.find_spec("ziglang") is None:
        raise ToolchainError(
            f"linking for {target.name}: there is no linker; install a C compiler, or Zig with "
            f"'python -m pip install ziglang', or name one with {COMPILER_VARIABLE}"
        )
    logger.info("linking with Zig; the very first time takes about a minute")
    triple = f"{target.link.triple}.{target.link.glibc}"
    return [sys.executable, "-m", "ziglang", "cc", "-target", triple]


def run_compiler(command: Sequence[str], target: str, output: Path) -> None:
    """Run a compiler or linker that makes `output`; its last words come with the error.

    Raises:
        ToolchainError: it cannot be started, or failed.
        OutputError: the disk is full.
    """
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as err:
        reason = f"{command[0]!r} cannot be started: {err.strerror}"
        raise ToolchainError(f"linking for {target}: {reason}") from err
    if result.returncode == 0:
        return
    if "No space left on device" in result.stdout:
        raise output_error(output, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    last = " | ".join(result.stdout.strip().splitlines()[-3:]) or "it said nothing"
    raise ToolchainError(
        f"linking for {target} failed: {shlex.join(command[:4])} ... ended with "
        f"{result.returncode}: {last}"
    )
