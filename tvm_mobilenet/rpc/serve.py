"""This machine as a board: the very agent that runs on boards, built for it and run here."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tvm_mobilenet.boards.archive import install_board
from tvm_mobilenet.errors import DeviceError, UsageError
from tvm_mobilenet.opencl.building import built_for_this_machine
from tvm_mobilenet.rpc.address import LOOPBACK, Address, parse_address
from tvm_mobilenet.rpc.auth import read_key_file, require_key
from tvm_mobilenet.targets import HOST, load_target

__all__ = ["DEFAULT_PORT", "serve_board"]

DEFAULT_PORT = 9090
_READY_S = 30.0
_END_S = 10.0


def serve_board(
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    *,
    tracker: str | None = None,
    key: str | None = None,
    advertise: str | None = None,
    auth_key_file: Path | str | None = None,
    session_timeout_s: float = 600.0,
    memory_limit_mib: int | None = None,
    on_ready: Callable[[Address], None] | None = None,
) -> None:
    """Serve this machine as a board until SIGINT or SIGTERM.

    Args:
        host: where to listen; anywhere but on this machine's own address it needs a key.
        port: 0 picks one.
        tracker: `HOST:PORT` of a tracker to register with, under `key`.
        key: the name under which the tracker lends this board.
        advertise: the address that the tracker tells clients; None for the one it sees.
        auth_key_file: holds the key that clients must prove that they hold; the tracker's, too.
        session_timeout_s: how long one session may last.
        memory_limit_mib: how much memory one session may take; None for the agent's default.
        on_ready: told the address once it listens.

    Raises:
        UsageError: the request is wrong, or may not be served without a key.
        ToolchainError: the agent cannot be built here.
        DeviceError: the agent did not start, or ended by itself.
    """
    if (tracker is None) != (key is None):
        raise UsageError("serve: --tracker and --key belong together; give both or neither")
    auth_key = read_key_file(auth_key_file) if auth_key_file is not None else None
    require_key(Address(host, port), auth_key)
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-serve-") as name:
        folder = Path(name)
        port_file = folder / "port"
        (folder / "work").mkdir(mode=0o700)
        agent = install_board(load_target(_target()), folder / "board")
        command = [str(agent), "--host", host, "--port", str(port), "--port-file", str(port_file)]
        command += ["--workdir", str(folder / "work")]
        command += ["--session-timeout-s", f"{session_timeout_s:g}"]
        if tracker is not None and key is not None:
            command += ["--tracker", str(parse_address(tracker, "tracker")), "--key", key]
        for option, value in (
            ("--advertise", advertise),
            ("--auth-key-file", auth_key_file),
            ("--memory-limit-mib", memory_limit_mib),
        ):
            if value is not None:
                command += [option, str(value)]
        _run_agent(command, host, port_file, on_ready)


def _target() -> str:
    """Return whose archive to take: with the OpenCL runtime, where this machine has used OpenCL."""
    return "opencl-generic" if built_for_this_machine() is not None else HOST


def _run_agent(
    command: Sequence[str],
    host: str,
    port_file: Path,
    on_ready: Callable[[Address], None] | None,
) -> None:
    # A session of its own: Ctrl-C comes to us, and we end it in order.
    agent = subprocess.Popen(command, start_new_session=True)
    try:
        end = time.monotonic() + _READY_S
        while not port_file.exists() and agent.poll() is None:
            if time.monotonic() > end:
                raise DeviceError(
                    f"the agent did not listen within {_READY_S:g} s; see what it wrote above",
                    device="this machine",
                    step="serve",
                )
            time.sleep(0.02)
        if agent.poll() is None and on_ready is not None:
            on_ready(Address(host, int(port_file.read_text(encoding="ascii"))))
        code = agent.wait()
    except KeyboardInterrupt:
        return
    finally:
        _end(agent)
    if code == UsageError.exit_code:
        raise UsageError("serve: the agent refused its options; see the line above")
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if code != 0:
        raise DeviceError(
            f"the agent ended by itself ({reason}); see what it wrote above",
            device="this machine",
            step="serve",
        )


def _end(agent: subprocess.Popen[bytes]) -> None:
    if agent.poll() is not None:
        return
    agent.terminate()
    try:
        agent.wait(_END_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
