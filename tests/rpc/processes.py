"""Trackers, agents, stock servers and bad links, each in a process of its own.

Of its own because TVM's client holds Python's lock while a remote object is freed: what answers it
must not need that lock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

WAIT_S = 60.0
"""For a process to be ready, on a machine that is busy with other tests."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Process:
    """A process with its own session, its output in a file; all of it ends with `close`."""

    def __init__(self, command: Sequence[str], log: Path, *, prefix: Sequence[str] = ()) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*prefix, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + WAIT_S
        while words not in self.text():
            assert self.process.poll() is None, f"ended early:\n{self.text()}"
            assert time.monotonic() < end, f"{words!r} was never said:\n{self.text()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut would: at once, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class TrackerProcess(Process):
    """`tvm-mobilenet tracker`, without the time that the command line takes to start."""

    def __init__(self, folder: Path, *, port: int = 0, key_file: Path | None = None) -> None:
        key = f"read_key_file({str(key_file)!r})" if key_file else "None"
        code = (
            "from tvm_mobilenet.rpc.auth import read_key_file\n"
            "from tvm_mobilenet.rpc.tracker import run_tracker\n"
            f"run_tracker(port={port or free_port()}, auth_key={key},\n"
            "    on_ready=lambda address: print('tracker at', address, flush=True))\n"
        )
        log = folder / f"tracker-{time.monotonic_ns()}.log"
        super().__init__([sys.executable, "-c", code], log)
        self.wait_for("tracker at ")
        self.address = self.text().split("tracker at ")[1].split()[0]
        self.port = int(self.address.rpartition(":")[2])


class AgentProcess(Process):
    """The board agent, built for this machine."""

    def __init__(
        self, program: Path, folder: Path, *options: str, prefix: Sequence[str] = ()
    ) -> None:
        number = time.monotonic_ns()
        port_file = folder / f"port-{number}"
        work = folder / f"work-{number}"
        work.mkdir()
        command = [str(program), "--port-file", str(port_file), "--workdir", str(work), *options]
        if "--port" not in options:
            command += ["--port", "0"]
        super().__init__(command, folder / f"agent-{number}.log", prefix=prefix)
        end = time.monotonic() + WAIT_S
        while not port_file.exists():
            assert self.process.poll() is None, f"ended early:\n{self.text()}"
            assert time.monotonic() < end, "the agent does not listen"
            time.sleep(0.02)
        self.port = int(port_file.read_text())
        self.address = f"127.0.0.1:{self.port}"


class StockServer(Process):
    """TVM's own RPC server."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--port-end", str(self.port + 1)]
        super().__init__(
            [sys.executable, "-m", "tvm.exec.rpc_server", *words, *options],
            folder / f"stock-{self.port}.log",
        )
        self.wait_for("bind to")


class StockTracker(Process):
    """TVM's own tracker."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--port-end", str(self.port + 1)]
        super().__init__(
            [sys.executable, "-m", "tvm.exec.rpc_tracker", *words],
            folder / f"stock-tracker-{self.port}.log",
        )
        self.wait_for("bind to")


class BadLink(Process):
    """A link to `target` that stops passing anything on when it is told to, and closes nothing."""

    def __init__(self, folder: Path, target: str) -> None:
        script = Path(__file__).with_name("bad_link.py")
        super().__init__(
            [sys.executable, "-I", "-S", str(script), target], folder / f"link-{free_port()}.log"
        )
        self.wait_for("link at ")
        self.address = self.text().split("link at ")[1].split()[0]

    def stop(self) -> None:
        """Pass nothing on any more."""
        self._tell(b"stop\n")
        self.wait_for("stopped")

    def stop_after(self, count: int) -> None:
        """Pass that many bytes on to the target, and then nothing any more."""
        self._tell(f"after {count}\n".encode())
        self.wait_for("armed")

    def _tell(self, words: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words)
        self.process.stdin.flush()
