"""Starting the agent on a board through the system's ssh, and reaching it through a tunnel.

Which keys are used, which hosts are known and how to get to them is the user's own ssh
configuration. The agent listens on the board's loopback address alone and ends with the connection.
"""

from __future__ import annotations

import re
import selectors
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tvm_mobilenet.boards.archive import AGENT, TOP_FOLDER, BoardArchive
from tvm_mobilenet.errors import DeviceError, DeviceTimeoutError, DeviceUnreachableError, UsageError

__all__ = ["SshBoard"]

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%+\[\]-]*")
_COPY_TIMEOUT_S = 600.0
_START_TIMEOUT_S = 60.0
_POLITE_S = 5.0
_STATUS_QUERY = b"TVMMNQ01"
_ALIVE = ("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3")


class SshBoard:
    """An agent that was copied to a board, started there, and is reached through a tunnel.

    Use it as a context manager or `close` it: the agent ends with it.

    Args:
        host: as ssh takes it: `user@host`, or a name from the user's ssh configuration.
        archive: what `bundle_board` wrote for that board.
        local_port: where the tunnel begins on this machine; 0 picks a port.

    Raises:
        UsageError: `host` is not one, or `local_port` is taken.
        DeviceError: there is no ssh here, it failed, or the agent did not start.
    """

    def __init__(self, host: str, archive: BoardArchive, *, local_port: int = 0) -> None:
        if not _HOST.fullmatch(host):
            raise UsageError(
                f"--ssh {host!r}: that is no user@host; give one, or a name from your ssh "
                "configuration"
            )
        self.host = host
        self._program = _find_ssh()
        self.port = _free_port(local_port)
        """Where the tunnel begins, on 127.0.0.1."""
        self._agent: subprocess.Popen[bytes] | None = None
        self._tunnel: subprocess.Popen[bytes] | None = None
        folder = self._copy(archive)
        try:
            self._dig(self._start(folder))
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """What `--device` takes."""
        return f"127.0.0.1:{self.port}"

    def wait(self) -> None:
        """Return when the connection has ended, which it does not do by itself.

        Raises:
            DeviceUnreachableError: always, at the end.
        """
        assert self._agent is not None
        assert self._tunnel is not None
        while self._agent.poll() is None and self._tunnel.poll() is None:
            time.sleep(0.2)
        ended = "agent" if self._agent.poll() is not None else "tunnel"
        raise DeviceUnreachableError(
            f"board {self.host}: the ssh connection of the {ended} has ended; look at the board, "
            "and start it again"
        )

    def close(self) -> None:
        """End tunnel and agent."""
        for process in (self._tunnel, self._agent):
            if process is None:
                continue
            if process.stdin is not None:
                process.stdin.close()  # the agent's end of it: it stops itself
            if process is self._tunnel:
                process.terminate()
            try:
                process.wait(_POLITE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._tunnel = self._agent = None

    def __enter__(self) -> SshBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _command(self, *options: str, script: str | None = None) -> list[str]:
        """Return an ssh command line; the script runs in the board's own shell."""
        words = [self._program, *_ALIVE, *options, "--", self.host]
        return words if script is None else [*words, script]

    def _copy(self, archive: BoardArchive) -> str:
        """Unpack the archive on the board, once for each content; return the folder."""
        script = _COPY.format(name=shlex.quote(archive.sha256[:24]), top=shlex.quote(TOP_FOLDER))
        with archive.path.open("rb") as content:
            try:
                result = subprocess.run(
                    self._command("-T", script=script),
                    stdin=content,
                    stdout=subprocess.PIPE,
                    check=False,
                    timeout=_COPY_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired as err:
                raise DeviceTimeoutError(
                    f"board {self.host}: copying took more than {_COPY_TIMEOUT_S:.0f} s; look at "
                    "the line"
                ) from err
        folder = result.stdout.decode(errors="replace").strip()
        if result.returncode != 0 or not folder.startswith("/"):
            raise DeviceUnreachableError(
                f"board {self.host}: copying failed, ssh ended with {result.returncode}; see what "
                f"it said above, and try 'ssh {self.host} true'"
            )
        return folder

    def _start(self, folder: str) -> int:
        """Start the agent and return the port that it has picked."""
        script = _RUN.format(folder=shlex.quote(folder), agent=AGENT)
        self._agent = subprocess.Popen(
            self._command("-T", script=script), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        line = _first_line(self._agent, _START_TIMEOUT_S)
        if not line.isdigit():
            raise DeviceError(
                f"board {self.host}: the agent did not start; see what it said above. It needs "
                "glibc and libstdc++ as its README says"
            )
        return int(line)

    def _dig(self, remote_port: int) -> None:
        forward = f"127.0.0.1:{self.port}:127.0.0.1:{remote_port}"
        self._tunnel = subprocess.Popen(
            self._command("-N", "-T", "-o", "ExitOnForwardFailure=yes", "-L", forward),
            stdin=subprocess.DEVNULL,
        )
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end:
            if self._tunnel.poll() is not None:
                raise DeviceUnreachableError(
                    f"board {self.host}: ssh made no tunnel at port {self.port} and ended with "
                    f"{self._tunnel.returncode}; see what it said above"
                )
            if self._answers():
                return
            time.sleep(0.1)
        raise DeviceTimeoutError(
            f"board {self.host}: the tunnel was not there after {_START_TIMEOUT_S:.0f} s"
        )

    def _answers(self) -> bool:
        """Whether the agent says something at the near end of the tunnel."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(_STATUS_QUERY)
                return bool(connection.recv(1))
        except OSError:
            return False


# In the user's own cache on the board, by content: copied a second time, it is only looked for. The
# archive is read to its end either way, so that the sender is not left with a broken pipe.
_COPY = """\
set -e
base="${{XDG_CACHE_HOME:-$HOME/.cache}}/tvm-mobilenet-board"
umask 077
mkdir -p "$base"
if [ -x "$base"/{name}/{top}/agent ]; then cat >/dev/null; else
  new=$(mktemp -d "$base/new-XXXXXX")
  trap 'rm -rf "$new"' EXIT
  tar -xzf - -C "$new"
  rm -rf "$base"/{name}
  mv "$new" "$base"/{name}
  trap - EXIT
fi
cd "$base"/{name}/{top}
pwd -P
"""

# The agent lives as long as the standard input of this script, which is the ssh connection.
_RUN = """\
cd {folder} || exit 1
own=$(mktemp -d "${{TMPDIR:-/tmp}}/tvm-mobilenet-ssh-XXXXXX") || exit 1
./{agent} --host 127.0.0.1 --port 0 --port-file "$own/port" --workdir "$own" </dev/null >&2 &
agent=$!
watcher=
trap 'kill $watcher $agent 2>/dev/null; wait $agent; rm -rf "$own"' EXIT
trap 'exit 1' HUP TERM INT
while [ ! -s "$own/port" ]; do kill -0 $agent 2>/dev/null || exit 1; sleep 0.1; done
cat "$own/port"
exec 3<&0
( while read -r _ <&3; do :; done; kill $agent ) >/dev/null 2>&1 &
watcher=$!
wait $agent
"""


def _find_ssh() -> str:
    found = shutil.which("ssh")
    if found is None:
        raise DeviceError("--ssh: there is no ssh on this machine; install OpenSSH's client")
    return str(Path(found))


def _free_port(wanted: int) -> int:
    """Return `wanted`, or for 0 a port that is free; ssh would find out too late that it is not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as err:
            raise UsageError(
                f"--local-port {wanted}: cannot be used here: {err.strerror}; choose another, or 0"
            ) from err
        return int(probe.getsockname()[1])


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> str:
    """Read one line of a process's output, an empty one if there is none in time."""
    assert process.stdout is not None
    found = b""
    end = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while b"\n" not in found and (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                break
            block = process.stdout.read1(64)  # type: ignore[attr-defined]  # a buffered reader
            if not block:
                break
            found += block
    return found.decode(errors="replace").strip()
