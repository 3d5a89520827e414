"""Building the project's C programs and libraries, for this machine or for a board."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tvm_mobilenet.files import new_file
from tvm_mobilenet.toolchain import compiler_driver, run_compiler

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["build_native", "forget_old_builds"]

logger = logging.getLogger(__name__)

_FLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-Wl,--build-id=none",  # nothing in the result may depend on where or when it was made
    "-Wl,--strip-debug",
    "-Wl,-z,relro,-z,now",
    "-Wl,--no-as-needed",  # a library may be there for what it registers when it is loaded
)
_KEPT_BUILDS = 8
_KINDS = {"program": ("-fPIE", "-pie"), "shared": ("-fPIC", "-shared")}


def build_native(
    sources: Sequence[Path],
    output: Path,
    target: TargetSpec,
    *,
    kind: Literal["program", "shared"],
    include: Sequence[Path] = (),
    libraries: Sequence[Path | str] = (),
    rpath: str = "$ORIGIN",
    defines: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Compile C sources and link them into `output`, for `target`.

    The compiler is chosen as `tvm_mobilenet.toolchain.link` does: the one that TVM_MOBILENET_CC
    names, else for this machine its own, else Zig with the target's triple and glibc. Warnings are
    errors. The same sources give the same bytes; `output` appears whole or not at all.

    Args:
        sources: C11 files; headers beside them are found.
        output: the program or the shared library.
        target: what it is built for.
        kind: whether `output` is a program or a shared library.
        include: folders of headers.
        libraries: shared libraries to link with: a file, or a flag like `-ldl`.
        rpath: where the result looks for its libraries; empty for nowhere but the system's places.
        defines: preprocessor macros, text as C sees it.
        flags: more for the compiler, after all the others.

    Raises:
        ToolchainError: there is no compiler, or it failed.
        OutputError: `output` cannot be written.
    """
    command = [*compiler_driver(target), *_FLAGS, *_KINDS[kind]]
    command += [f"-I{folder}" for folder in include]
    command += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    if kind == "shared":
        command.append(
            f"-Wl,-soname,{output.name}"
        )  # what links with it asks for a name, not a path
    if rpath:
        command.append(f"-Wl,-rpath,{rpath}")
    with new_file(output, executable=True) as unfinished:
        command += ["-o", str(unfinished), *(str(path) for path in sources)]
        command += [*(str(library) for library in libraries), *flags]
        logger.debug("%s", shlex.join(command))
        run_compiler(command, target.name, output)


def forget_old_builds(newest: Path) -> None:
    """Keep the cache from growing with every change of the sources: the last few builds stay.

    Args:
        newest: the folder of the build that was made just now, beside those of earlier ones.
    """
    builds = sorted(
        (path for path in newest.parent.iterdir() if path.is_dir() and path != newest),
        key=lambda path: path.stat().st_mtime,
    )
    for old in builds[: -(_KEPT_BUILDS - 1)]:
        shutil.rmtree(old, ignore_errors=True)  # another process may be doing the same
