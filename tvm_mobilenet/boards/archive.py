"""What is copied to a board: the agent with TVM's runtime, and what starts it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import ArtifactError
from tvm_mobilenet.files import output_error, sha256_of, write_tar_gz
from tvm_mobilenet.native_build import build_native, forget_old_builds
from tvm_mobilenet.opencl.building import opencl_runtime
from tvm_mobilenet.runtime_libs import RuntimeLibs, cache_folder, runtime_libs
from tvm_mobilenet.targets import shipped_folder
from tvm_mobilenet.toolchain import COMPILER_VARIABLE

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["AGENT", "TOP_FOLDER", "BoardArchive", "build_agent", "bundle_board", "install_board"]

TOP_FOLDER = "tvm-mobilenet-board"
"""The one folder that the archive unpacks to."""
AGENT = "agent"
"""The program in it."""

_PROGRAM, _FILE = 0o755, 0o644


@dataclass(frozen=True, kw_only=True)
class BoardArchive:
    """An archive that was written."""

    path: Path
    size_bytes: int
    sha256: str
    target: str
    glibc: str
    """The oldest glibc that it runs with."""
    files: tuple[str, ...]


def bundle_board(target: TargetSpec, output: Path) -> BoardArchive:
    """Write the archive for a board as `output`, a `.tar.gz`.

    Nothing but glibc and libstdc++ has to be on the board: no Python, no compiler. The same sources
    give the same bytes; the file appears whole or not at all.

    Raises:
        UsageError: TVM publishes no runtime for the board.
        ToolchainError: the agent cannot be built, or the runtime not be fetched.
        OutputError: `output` cannot be written.
    """
    libs = runtime_libs(target)
    entries = list(_entries(target, libs))
    write_tar_gz(
        output, ((f"{TOP_FOLDER}/{name}", content, mode) for name, content, mode in entries)
    )
    return BoardArchive(
        path=output,
        size_bytes=output.stat().st_size,
        sha256=sha256_of(output),
        target=target.name,
        glibc=target.link.glibc,
        files=tuple(name for name, _, _ in entries),
    )


def install_board(target: TargetSpec, folder: Path) -> Path:
    """Lay the archive's content out in `folder`, which is made; return the agent program.

    Raises:
        UsageError, ToolchainError: as `bundle_board` does.
        OutputError: `folder` cannot be written.
    """
    try:
        for name, content, mode in _entries(target, runtime_libs(target)):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(mode)
    except OSError as err:
        raise output_error(folder, err) from err
    return folder / AGENT


def build_agent(target: TargetSpec) -> Path:
    """Return the agent program for `target`, from the cache if its sources have not changed.

    Raises:
        UsageError, ToolchainError: as `bundle_board` does.
        OutputError: the cache folder cannot be written.
    """
    libs = runtime_libs(target)
    folder = shipped_folder("native") / "board_agent"
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".c", ".h"))
    if not sources:
        raise ArtifactError(f"{folder}: the agent's sources are not there; install again")
    digest = hashlib.sha256()
    for part in (
        f"{target.link.triple} {target.link.glibc} {target.is_host} {libs.version}",
        os.environ.get(COMPILER_VARIABLE, ""),
    ):
        digest.update(part.encode() + b"\0")
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    # One folder a state of the sources: the program's name, and so its bytes, stay the same.
    built = cache_folder() / "agent" / digest.hexdigest()[:24] / AGENT
    if not built.is_file():
        build_native(
            [path for path in sources if path.suffix == ".c"],
            built,
            target,
            kind="program",
            include=libs.include,
            libraries=(libs.tvm_runtime, libs.tvm_ffi, "-ldl", "-lm"),
            rpath="$ORIGIN/lib",
            defines={"AGENT_TVM_VERSION": f'"{libs.version}"'},
        )
        forget_old_builds(built.parent)
    return built


def _entries(target: TargetSpec, libs: RuntimeLibs) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, content and mode of everything that goes to the board, in a fixed order."""
    yield AGENT, build_agent(target).read_bytes(), _PROGRAM
    yield "README", _README.format(target=target.name, glibc=target.link.glibc).encode(), _FILE
    yield "start.sh", _START.encode(), _PROGRAM
    yield "tvm-mobilenet-board.service", _UNIT.encode(), _FILE
    for library in (libs.tvm_ffi, libs.tvm_runtime):
        yield f"lib/{library.name}", library.read_bytes(), _FILE
    # What a session loads from here it could also do without.
    yield f"sidelibs/{libs.tvm_runtime_extra.name}", libs.tvm_runtime_extra.read_bytes(), _FILE
    if target.device_kind == "opencl":
        opencl = opencl_runtime(None if target.is_host else target)
        yield f"sidelibs/{opencl.name}", opencl.read_bytes(), _FILE
    for notice in libs.notices:
        yield f"licenses/TVM-{notice.name}", notice.read_bytes(), _FILE


_README = """\
Board agent of tvm-mobilenet for {target}: runs and measures models that a host sends.
Needs Linux with glibc {glibc} or newer and libstdc++.so.6; no Python, no compiler.
Start it with ./start.sh; it then waits at 127.0.0.1:9090. ./start.sh --help lists its options.
From the host, come in by ssh: ssh -L 9090:127.0.0.1:9090 user@board
then: tvm-mobilenet doctor --device 127.0.0.1:9090
To be reachable from the network: --host 0.0.0.0 --auth-key-file FILE (chmod 600, 16 bytes or more).
To be lent by a tracker: --tracker HOST:PORT --key NAME
As a service: this folder to /opt, the .service file to /etc/systemd/system, systemctl enable --now
tvm-mobilenet-board. Shared libraries (*.so) in sidelibs/ are loaded in each session.
Whoever may use the agent runs code of his own here: give it a user with no more rights than that.
"""

_START = """\
#!/bin/sh
# Starts the board agent that lies beside this file. Options go through: see --help.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1
exec "$here/agent" "$@"
"""

_UNIT = f"""\
[Unit]
Description=tvm-mobilenet board agent
After=network.target

[Service]
ExecStart=/opt/{TOP_FOLDER}/agent --host 127.0.0.1 --port 9090
Restart=always
RestartSec=1
# A session that runs out of memory is the agent's affair and does not end the service.
OOMPolicy=continue
KillMode=mixed
DynamicUser=yes
PrivateTmp=yes
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes

[Install]
WantedBy=multi-user.target
"""
