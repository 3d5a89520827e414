"""Starting a board over ssh, with a program in ssh's place that does everything on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.boards.agents import eventually, native_target
from tvm_mobilenet.boards.archive import BoardArchive, bundle_board
from tvm_mobilenet.boards.ssh import SshBoard
from tvm_mobilenet.errors import DeviceError, DeviceUnreachableError, UsageError

# Parses ssh's command line as ssh does, runs the script in a shell of its own, or forwards a port.
FAKE_SSH = f"""#!{sys.executable}
import getopt, os, socket, subprocess, sys, threading
options, words = getopt.getopt(sys.argv[1:], "NTo:L:p:l:i:")
with open(os.environ["FAKE_SSH_LOG"], "a") as log:
    print(repr(sys.argv[1:]), file=log)
if os.environ.get("FAKE_SSH_FAILS"):
    print("ssh: connect to host board port 22: No route to host", file=sys.stderr)
    sys.exit(255)
options = dict(options)
if "-N" not in options:
    environment = {{**os.environ, "HOME": os.environ["FAKE_SSH_HOME"]}}
    environment.pop("XDG_CACHE_HOME", None)
    os.execve("/bin/sh", ["sh", "-c", " ".join(words[1:])], environment)
begin_host, begin, host, port = options["-L"].split(":")
listener = socket.create_server((begin_host, int(begin)))
def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
while True:
    client, _ = listener.accept()
    board = socket.create_connection((host, int(port)))
    threading.Thread(target=pump, args=(client, board), daemon=True).start()
    threading.Thread(target=pump, args=(board, client), daemon=True).start()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """The home folder on the board, with the fake ssh first on the path."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(FAKE_SSH)
    (programs / "ssh").chmod(0o755)
    folder = tmp_path / "a home, isn't it"
    folder.mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SSH_HOME", str(folder))
    monkeypatch.setenv("FAKE_SSH_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> BoardArchive:
    return bundle_board(native_target(), tmp_path_factory.mktemp("archive") / "board.tar.gz")


def agents_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.exe().startswith(str(home)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_it_is_copied_started_reached_and_ended(home: Path, archive: BoardArchive, tmp_path: Path):
    from tvm import rpc

    for _ in range(2):
        with SshBoard("pi@board", archive) as board:
            host, port = board.address.split(":")
            session = rpc.connect(host, int(port), "")
            session.upload(bytearray(b"over ssh"), "file")
            assert bytes(session.download("file")) == b"over ssh"
            session = None
            assert len(agents_of(home)) >= 1
        eventually(lambda: not agents_of(home), "the agent's end")
        eventually(lambda: not list((tmp_path / "tmp").iterdir()), "its files' end")
    copies = list((home / ".cache/tvm-mobilenet-board").iterdir())
    assert [path.name for path in copies] == [archive.sha256[:24]]
    assert all("'--', 'pi@board'" in line for line in (tmp_path / "log").read_text().splitlines())


@pytest.mark.parametrize(
    "host",
    ["-oProxyCommand=touch /tmp/x", "pi@board; rm -rf /", "$(id)", "a b", "", "`id`", "a\nb"],
)
def test_what_is_no_host_never_reaches_ssh(home: Path, archive: BoardArchive, tmp_path, host: str):
    with pytest.raises(UsageError, match="that is no user@host"):
        SshBoard(host, archive)
    assert not (tmp_path / "log").exists()


def test_a_board_that_ssh_does_not_reach(home: Path, archive: BoardArchive, monkeypatch):
    monkeypatch.setenv("FAKE_SSH_FAILS", "1")
    with pytest.raises(DeviceUnreachableError, match="ssh ended with 255; see what it said above"):
        SshBoard("pi@board", archive)


def test_an_agent_that_does_not_start(home: Path, archive: BoardArchive, tmp_path: Path):
    with SshBoard("pi@board", archive):
        pass
    (agent,) = home.rglob("tvm-mobilenet-board/agent")
    agent.write_text("#!/bin/sh\necho no libstdc++ >&2\nexit 127\n")
    with pytest.raises(DeviceError, match="the agent did not start"):
        SshBoard("pi@board", archive)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_connection_that_ends_is_noticed(home: Path, archive: BoardArchive):
    with SshBoard("pi@board", archive) as board:
        for process in agents_of(home):
            process.kill()
        with pytest.raises(DeviceUnreachableError, match="the ssh connection of the agent has end"):
            board.wait()


def test_a_port_that_is_taken_leaves_no_agent(home: Path, archive: BoardArchive):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--local-port {port}: cannot be used here"):
            SshBoard("pi@board", archive, local_port=port)
    assert not agents_of(home)


def test_without_ssh_one_line_says_so(archive: BoardArchive, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="there is no ssh on this machine"):
        SshBoard("pi@board", archive)
