"""Building the OpenCL runtime for TVM out of `native/opencl_runtime`, for this machine or a board.

It is C++ between TVM's libraries, through which exceptions pass, and so has to use the C++ library
that they use: GCC's. Zig's own would end the process at the first error. For a board GCC compiles
and Zig links, against the C library that the target names: alone GCC would ask for its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.errors import ArtifactError, ToolchainError
from tvm_mobilenet.files import new_file, output_error
from tvm_mobilenet.native_build import forget_old_builds
from tvm_mobilenet.runtime_libs import cache_folder, package_folder, runtime_libs, target_machine
from tvm_mobilenet.targets import shipped_folder
from tvm_mobilenet.toolchain import run_compiler

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = [
    "COMPILER_VARIABLE",
    "HEADERS_VARIABLE",
    "LIBRARY",
    "built_for_this_machine",
    "missing_for_this_machine",
    "opencl_runtime",
]

logger = logging.getLogger(__name__)

LIBRARY = "libtvm_mobilenet_opencl.so"
COMPILER_VARIABLE = "TVM_MOBILENET_CXX"
"""Environment variable that names the C++ compiler for this machine, arguments allowed; GCC, or
Clang with libstdc++."""
HEADERS_VARIABLE = "TVM_MOBILENET_OPENCL_HEADERS"
"""Environment variable that names the folder that Khronos's `CL` folder of headers lies in."""

_FLAGS = (
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
)
# Our templates must not take the place of the runtime's.
_CXX_FLAGS = ("-std=c++17", "-fvisibility-inlines-hidden")
_C_FLAGS = ("-std=c11",)
_LINK_FLAGS = (
    "-shared",
    "-Wl,--build-id=none",
    "-Wl,--strip-debug",
    "-Wl,-z,relro,-z,now",
    f"-Wl,-soname,{LIBRARY}",
)
_HEADER_FOLDERS = (Path("/usr/include"), Path("/usr/local/include"), Path(sys.prefix, "include"))
_PACKAGES = "opencl-c-headers"


@dataclass(frozen=True)
class _Sources:
    folder: Path
    """`native`, which the sources name each other from."""
    cxx: tuple[Path, ...]
    c: tuple[Path, ...]
    old_system: Path
    """What replaces newer parts of GCC's library on a board."""
    exports: Path

    @classmethod
    def find(cls) -> _Sources:
        native = shipped_folder("native")
        folder = native / "opencl_runtime"
        sources = cls(
            folder=native,
            cxx=tuple(sorted(folder.glob("*.cc"))),
            c=(native / "board_agent/sha256.c",),
            old_system=folder / "compat/old_system.cc",
            exports=folder / "exports.map",
        )
        if not sources.cxx:
            raise ArtifactError(f"{folder}: the OpenCL runtime's sources are not there")
        return sources

    def digest(self, *settings: str) -> str:
        headers = [*self.folder.glob("opencl_runtime/**/*.h"), *self.folder.glob("**/sha256.h")]
        digest = hashlib.sha256()
        for text in settings:
            digest.update(text.encode() + b"\0")
        for path in sorted({*self.cxx, *self.c, *headers, self.old_system, self.exports}):
            digest.update(str(path.relative_to(self.folder)).encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:24]


def opencl_runtime(target: TargetSpec | None = None) -> Path:
    """Return the runtime for a board, or with None for this machine, built unless it is there.

    Two processes may ask at once: one builds, the other waits. It takes some 20 s of one core.

    Raises:
        ToolchainError: a compiler or the headers are missing, or the compiler failed.
        UsageError: TVM publishes no runtime for the board.
        OutputError: the cache folder cannot be written.
    """
    sources = _Sources.find()
    built = _place(sources, target)
    if built.is_file():
        return built
    try:
        built.parent.parent.mkdir(parents=True, exist_ok=True)
        with (built.parent.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not built.is_file():  # another process may have been here meanwhile
                _build(sources, target, built)
                forget_old_builds(built.parent)
    except OSError as err:
        raise output_error(built, err) from err
    return built


def built_for_this_machine() -> Path | None:
    """Return the runtime for this machine if it has been built; builds nothing."""
    built = _place(_Sources.find(), None)
    return built if built.is_file() else None


def missing_for_this_machine() -> tuple[str, ...]:
    """Return what is still needed to build it here, in Debian's names; empty where nothing."""
    missing = []
    if not _compilers(None):
        missing.append("g++")
    if _headers() is None:
        missing.append(_PACKAGES)
    return tuple(missing)


def _place(sources: _Sources, target: TargetSpec | None) -> Path:
    link = f"{target.link.triple} {target.link.glibc}" if target else "this machine"
    digest = sources.digest(
        link,
        os.environ.get(COMPILER_VARIABLE, ""),
        os.environ.get(HEADERS_VARIABLE, ""),
        importlib.metadata.version("apache-tvm"),
        importlib.metadata.version("apache-tvm-ffi"),
    )
    return cache_folder() / "opencl_runtime" / digest / LIBRARY


def _compilers(target: TargetSpec | None) -> list[str]:
    """Return the C++ compiler for `target` as words of a command; empty where there is none."""
    machine = target_machine(target) if target else host_machine()
    if machine != host_machine():
        names = [f"{machine}-linux-gnu-g++"]
    elif os.environ.get(COMPILER_VARIABLE):
        return shlex.split(os.environ[COMPILER_VARIABLE])
    else:
        names = ["g++", "c++"]
    return next(([name] for name in names if shutil.which(name)), [])


def _headers() -> Path | None:
    named = os.environ.get(HEADERS_VARIABLE)
    folders = (Path(named),) if named else _HEADER_FOLDERS
    return next((folder for folder in folders if (folder / "CL/cl.h").is_file()), None)


def _build(sources: _Sources, target: TargetSpec | None, output: Path) -> None:
    where = target.name if target else "this machine"
    compiler = _compilers(target)
    headers = _headers()
    if not compiler or headers is None:
        machine = target_machine(target) if target else host_machine()
        package = "g++" if machine == host_machine() else f"g++-{machine}-linux-gnu"
        lacks = [name for name, there in ((package, compiler), (_PACKAGES, headers)) if not there]
        raise ToolchainError(
            f"the OpenCL runtime for {where}: {' and '.join(lacks)} "
            f"{'is' if len(lacks) == 1 else 'are'} not installed here; on Debian or Ubuntu: "
            f"apt-get install {' '.join(lacks)}"
        )
    logger.info("building the OpenCL runtime for %s", where)
    cxx = list(sources.cxx)
    if target is not None:
        cxx.append(sources.old_system)
    with new_file(output, executable=True) as unfinished, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # Headers for one architecture must not be looked for among those of another.
        (folder / "khronos").mkdir()
        (folder / "khronos/CL").symlink_to((headers / "CL").resolve())
        common = [*compiler, *_FLAGS, f"-ffile-prefix-map={sources.folder}=native"]
        common += [word for path in _include(sources, folder) for word in ("-isystem", str(path))]
        jobs = [
            [*common, *language, "-c", "-o", str(folder / f"{path.stem}.o"), str(path)]
            for paths, language in (
                (cxx, ("-x", "c++", *_CXX_FLAGS)),
                (sources.c, ("-x", "c", *_C_FLAGS)),
            )
            for path in paths
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(lambda job: run_compiler(job, where, output), jobs))
        objects = sorted(str(path) for path in folder.glob("*.o"))
        command = [*_linker(target, compiler), *_LINK_FLAGS]
        command += [f"-Wl,--version-script={sources.exports}", "-o", str(unfinished), *objects]
        run_compiler([*command, *_libraries(target, compiler), "-ldl"], where, output)


def _include(sources: _Sources, folder: Path) -> list[Path]:
    tvm = package_folder("tvm")
    ours = sources.folder / "opencl_runtime/compat"
    return [
        ours,
        folder / "khronos",
        tvm / "include",
        package_folder("tvm_ffi") / "include",
        tvm / "src/runtime",
    ]


def _linker(target: TargetSpec | None, compiler: Sequence[str]) -> list[str]:
    if target is None:
        return list(compiler)
    if importlib.util.find_spec("ziglang") is None:
        raise ToolchainError(
            f"linking for {target.name}: install Zig with 'python -m pip install ziglang'"
        )
    triple = f"{target.link.triple}.{target.link.glibc}"
    return [sys.executable, "-m", "ziglang", "cc", "-target", triple]


def _libraries(target: TargetSpec | None, compiler: Sequence[str]) -> list[str]:
    if target is None:
        lib = package_folder("tvm") / "lib"
        ffi = package_folder("tvm_ffi") / "lib"
        return [str(lib / "libtvm_runtime.so"), str(ffi / "libtvm_ffi.so")]
    libs = runtime_libs(target)
    files = [str(libs.tvm_runtime), str(libs.tvm_ffi)]
    for name in ("libstdc++.so.6", "libgcc_s.so.1"):
        command = [*compiler, f"-print-file-name={name}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        path = result.stdout.strip()
        if not os.path.isabs(path):  # noqa: PTH117
            raise ToolchainError(f"linking for {target.name}: {compiler[0]} has no {name}")
        files.append(path)
    return files
