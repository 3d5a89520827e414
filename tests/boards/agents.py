"""Starting board agents for tests, and talking to them with TVM's own client.

An agent is `native` (built for this machine) or `emulated` (the board's, under QEMU).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from tvm_mobilenet.boards.archive import install_board
from tvm_mobilenet.boards.sysroot import emulator_command, missing_packages
from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.runtime_libs import runtime_libs
from tvm_mobilenet.targets import TargetSpec, load_target

_T = TypeVar("_T")

KINDS = ("native", pytest.param("emulated", marks=pytest.mark.arm))
RPC_MAGIC = 0xFF271
LIMIT_S = 60.0
"""For anything to happen at all; nothing here takes a tenth of it on an idle machine."""

# What a board may be sent by mistake or by malice, as TVM's module loader finds it.
FAULTY_SOURCE = """
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <tvm/ffi/c_api.h>
#define KERNEL(name) __attribute__((visibility("default"))) int __tvm_ffi_##name( \\
    void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result)
#define UNUSED (void)self, (void)args, (void)count, (void)result
KERNEL(crash) { UNUSED; raise(SIGSEGV); return 0; }
KERNEL(spin) { UNUSED; for (volatile long i = 0;; ++i) continue; return 0; }
KERNEL(hoard) {
  UNUSED;
  for (;;) {
    static char *volatile block;  // or the compiler sees that nobody reads it
    block = malloc(1 << 20);
    if (block != NULL) memset(block, 1, 1 << 20);
  }
  return 0;
}
KERNEL(leave) { UNUSED; exit(7); return 0; }
KERNEL(nap) { UNUSED; sleep(600); return 0; }
KERNEL(litter) {
  UNUSED;
  if (fork() == 0) {
    setsid();
    if (fork() == 0) for (;;) pause();
    _exit(0);
  }
  FILE *file = fopen("left/behind", "w");
  if (file == NULL && system("mkdir -p left/deep && touch left/deep/file && chmod 0 left/deep")) {
    return -1;
  }
  return 0;
}
KERNEL(answer) { UNUSED; result->type_index = kTVMFFIInt; result->v_int64 = 42; return 0; }
"""


def native_target() -> TargetSpec:
    """Return a target of this machine's architecture, without looking closely at the machine."""
    return load_target("x86-64-avx2" if host_machine() == "x86-64" else "generic-aarch64")


@dataclass(frozen=True)
class Program:
    """An agent that can be started."""

    command: tuple[str, ...]
    faulty: Path
    target: TargetSpec


def make_program(kind: str, folder: Path) -> Program:
    target = native_target() if kind == "native" else load_target("rpi4")
    command: list[str] = []
    if kind == "emulated":
        missing = missing_packages()
        if missing:
            pytest.skip(f"not installed here: {', '.join(missing)}; see `make emulator`")
        command = emulator_command(target)
    agent = install_board(target, folder / "board")
    source = folder / "faulty.c"
    source.write_text(FAULTY_SOURCE)
    build_native(
        [source],
        folder / "faulty.so",
        target,
        kind="shared",
        include=runtime_libs(target).include,
        flags=["-Wno-unused-result"],
    )
    return Program((*command, str(agent)), folder / "faulty.so", target)


def eventually(check: Callable[[], _T], what: str, limit_s: float = LIMIT_S) -> _T:
    """Return the first true value of `check`, asking again and again."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {limit_s:.0f} s")


def bounded(call: Callable[[], _T], limit_s: float = LIMIT_S) -> _T:
    """Return what `call` returns, or fail the test if it does not return."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((True, call()))
        except BaseException as err:
            results.append((False, err))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    assert results, f"the call hung for {limit_s:.0f} s"
    good, value = results.pop()
    try:
        if not good:
            raise value
        return value
    finally:
        del value  # or the error would keep this frame, and it the session


@dataclass
class Agent:
    """An agent that runs."""

    process: subprocess.Popen[bytes]
    port: int
    program: Program
    workdir: Path
    log: Path
    opened: list[socket.socket] = field(default_factory=list)

    def connect(self, key: str = "", timeout_s: float = 0) -> Any:
        """Open a session with TVM's own client."""
        from tvm import rpc

        return bounded(lambda: rpc.connect("127.0.0.1", self.port, key, timeout_s))

    def session_with_faults(self, timeout_s: float = 0) -> Callable[[str], Any]:
        """Open a session and upload the faulty library; return what calls a function of it."""
        session = self.connect(timeout_s=timeout_s)
        # Not by path: TVM's client would leave the file to be closed by chance.
        content = bytearray(self.program.faulty.read_bytes())
        bounded(lambda: session.upload(content, "faulty.so"))
        module = bounded(lambda: session.load_module("faulty.so"))
        return lambda name: bounded(lambda: module[name]())

    def works(self) -> float:
        """Have a session compute something; return how many seconds that took from now."""
        gc.collect()  # sessions that an error's traceback still holds
        begin = time.monotonic()
        assert self.session_with_faults()("answer") == 42
        return time.monotonic() - begin

    def socket(self, data: bytes = b"") -> socket.socket:
        """Open a plain connection, and send something on it."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)
        self.opened.append(connection)
        if data:
            connection.sendall(data)
        return connection

    def status(self) -> dict[str, Any]:
        """Ask for the agent's status."""
        with self.socket(b"TVMMNQ01") as connection:
            (size,) = struct.unpack("<I", receive(connection, 4))
            return json.loads(receive(connection, size))

    def last_end(self) -> dict[str, Any]:
        """Wait until the board is free again; return how its last session ended."""
        status = eventually(lambda: (s := self.status())["state"] == "free" and s, "free again")
        return status["sessions"][-1]

    def free_after_s(self) -> float:
        """Return how long it takes from now until the board says that it is free."""
        begin = time.monotonic()
        eventually(lambda: self.status()["state"] == "free", "free again")
        return time.monotonic() - begin

    def leftovers(self) -> list[str]:
        """Return the files of sessions, and the processes under the agent."""
        files = [str(path) for path in self.workdir.glob("*/*")]
        children = psutil.Process(self.process.pid).children(recursive=True)
        return files + [str(child) for child in children]

    def descriptors(self) -> int:
        return psutil.Process(self.process.pid).num_fds()


def receive(connection: socket.socket, size: int) -> bytes:
    """Receive exactly `size` bytes; an early end is an error."""
    data = b""
    while len(data) < size:
        block = connection.recv(size - len(data))
        if not block:
            raise EOFError(f"closed after {len(data)} of {size} bytes")
        data += block
    return data


def hello(key: str = "client:") -> bytes:
    """Return how a client begins."""
    return struct.pack("<ii", RPC_MAGIC, len(key)) + key.encode()


@contextlib.contextmanager
def running(program: Program, folder: Path, *options: str) -> Iterator[Agent]:
    """Run an agent; at the end it has to stop when asked, and leave nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    workdir, port_file, log = folder / "work", folder / "port", folder / "log"
    workdir.mkdir(exist_ok=True)
    command = [*program.command, "--port", "0", "--port-file", str(port_file)]
    command += ["--workdir", str(workdir), *options]
    with log.open("ab") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    agent = Agent(process, 0, program, workdir, log)
    try:
        eventually(lambda: port_file.exists() or process.poll() is not None, "start")
        assert process.poll() is None, log.read_text()
        agent.port = int(port_file.read_text())
        yield agent
        if process.poll() is None:
            process.terminate()
            assert process.wait(LIMIT_S) == 0, log.read_text()
            assert not list(workdir.iterdir()), "files are left"
            assert not port_file.exists()
    finally:
        for connection in agent.opened:
            connection.close()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Program]:
    """Build an agent of a kind once."""
    made: dict[str, Program] = {}

    def program(kind: str) -> Program:
        if kind not in made:
            made[kind] = make_program(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return program


@pytest.fixture
def native(programs: Callable[[str], Program]) -> Program:
    return programs("native")


@pytest.fixture(params=KINDS)
def program(request: pytest.FixtureRequest, programs: Callable[[str], Program]) -> Program:
    return programs(request.param)


@pytest.fixture
def agent(program: Program, tmp_path: Path) -> Iterator[Agent]:
    """An agent of each kind, for sessions of at most a minute."""
    with running(program, tmp_path / "agent", "--session-timeout-s", "60") as started:
        yield started


@pytest.fixture
def native_agent(native: Program, tmp_path: Path) -> Iterator[Agent]:
    with running(native, tmp_path / "agent", "--session-timeout-s", "60") as started:
        yield started


@pytest.fixture
def stock_tracker() -> Iterator[Callable[[int | None], StockTracker]]:
    """Start TVM's own tracker, on a port that is free or on a given one."""
    started: list[StockTracker] = []

    def start(port: int | None = None) -> StockTracker:
        tracker = StockTracker(port)
        started.append(tracker)
        return tracker

    yield start
    for tracker in started:
        tracker.stop()


class StockTracker:
    """`python -m tvm.exec.rpc_tracker`."""

    def __init__(self, port: int | None) -> None:
        import sys

        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port or 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--silent"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--port-end", str(self.port + 1)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        )
        eventually(self.answers, "the tracker")

    def answers(self) -> bool:
        assert self.process.poll() is None, "the tracker has ended"
        with contextlib.suppress(OSError):
            self.summary()
            return True
        return False

    def client(self) -> Any:
        from tvm import rpc

        return rpc.connect_tracker("127.0.0.1", self.port)

    def summary(self) -> dict[str, Any]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(struct.pack("<i", 0x2F271))
            receive(connection, 4)
            request = json.dumps([6]).encode()
            connection.sendall(struct.pack("<i", len(request)) + request)
            (size,) = struct.unpack("<i", receive(connection, 4))
            return json.loads(receive(connection, size))[1]

    def free(self, key: str) -> int:
        return self.summary()["queue_info"].get(key, {}).get("free", 0)

    def stop(self) -> None:
        if self.process.poll() is None:
            # What serves is a child of its own, in another process group.
            family = psutil.Process(self.process.pid).children(recursive=True)
            for process in family:
                process.kill()
            self.process.kill()
            psutil.wait_procs(family, timeout=30)
        self.process.wait()
