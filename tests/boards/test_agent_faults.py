"""What goes wrong in a session ends the session, with a reason, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.boards.agents import Agent, Program, bounded, eventually, hello, receive, running


def recovers(agent: Agent, record: Callable[[str, object], None]) -> None:
    """The board is free, works, and nothing is left; how fast goes into the report."""
    record("free_after_s", round(agent.free_after_s(), 3))
    record("next_session_s", round(agent.works(), 3))
    eventually(lambda: not agent.leftovers(), "nothing left behind")


def fails(call: Callable[[], object], pattern: str) -> str:
    """The client gets an error that says why."""
    from tvm.error import RPCError

    with pytest.raises(RPCError) as caught:
        call()
    assert re.search(pattern, str(caught.value)), str(caught.value)
    return str(caught.value)


def test_a_kernel_that_crashes(agent: Agent, record_property):
    call = agent.session_with_faults()
    fails(lambda: call("crash"), r"board: session ended by SIGSEGV \(Segmentation fault\)")
    recovers(agent, record_property)
    first = agent.status()["sessions"][0]
    assert first["end"] == "signal"
    assert first["detail"].startswith("SIGSEGV")


def test_a_kernel_that_never_ends(agent: Agent, record_property):
    call = agent.session_with_faults(timeout_s=2)
    from tvm.error import RPCSessionTimeoutError

    with pytest.raises(RPCSessionTimeoutError, match="board: session ended by its time limit: 2 s"):
        call("spin")
    recovers(agent, record_property)
    assert agent.status()["sessions"][0]["end"] == "time-limit"


def test_the_agents_own_limit_is_the_smaller_one(native: Program, tmp_path: Path):
    from tvm.error import RPCSessionTimeoutError

    with running(native, tmp_path / "agent", "--session-timeout-s", "1") as agent:
        call = agent.session_with_faults(timeout_s=500)
        with pytest.raises(RPCSessionTimeoutError, match="time limit: 1 s"):
            call("spin")


def test_a_kernel_that_allocates_without_end(program: Program, tmp_path: Path, record_property):
    with running(program, tmp_path / "agent", "--memory-limit-mib", "400") as agent:
        call = agent.session_with_faults()
        fails(lambda: call("hoard"), r"ended by the memory limit: \d+ MiB in use, 400 MiB allowed")
        recovers(agent, record_property)
        assert agent.status()["sessions"][0]["end"] == "memory-limit"


def test_a_kernel_that_ends_the_process(agent: Agent, record_property):
    call = agent.session_with_faults()
    fails(lambda: call("leave"), "board: session ended: exit code 7")
    recovers(agent, record_property)
    assert agent.status()["sessions"][0]["end"] == "exit"


def test_a_kernel_that_leaves_processes_and_files(native_agent: Agent, record_property):
    call = native_agent.session_with_faults()
    call("litter")
    assert len(psutil.Process(native_agent.process.pid).children(recursive=True)) > 1
    del call
    recovers(native_agent, record_property)


def test_an_idle_session_learns_at_its_next_call_that_it_is_over(agent: Agent):
    from tvm.error import RPCSessionTimeoutError

    call = agent.session_with_faults(timeout_s=1)
    assert agent.last_end()["end"] == "time-limit"
    with pytest.raises(RPCSessionTimeoutError, match="time limit"):
        call("answer")


def test_a_client_that_goes_away_while_a_call_runs(agent: Agent, record_property):
    import sys

    code = (
        "import sys; from tvm import rpc; s = rpc.connect('127.0.0.1', int(sys.argv[1]), '');"
        "s.upload(bytearray(open(sys.argv[2], 'rb').read()), 'f.so'); m = s.load_module('f.so');"
        "print(flush=True); m['nap']()"
    )
    command = [sys.executable, "-c", code, str(agent.port), str(agent.program.faulty)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()
        time.sleep(0.2)
        client.kill()
    recovers(agent, record_property)
    assert "went away" in agent.status()["sessions"][0]["detail"]


@pytest.fixture
def killed(program: Program, tmp_path: Path) -> Iterator[tuple[Agent, Callable[[], None]]]:
    """An agent, and what to call after it was killed: the sessions are gone, a new agent works."""
    folder = tmp_path / "agent"
    with running(program, folder) as agent:

        def start_again() -> None:
            family = psutil.Process(agent.process.pid).children(recursive=True)
            os.kill(agent.process.pid, signal.SIGKILL)
            agent.process.wait()
            _, alive = psutil.wait_procs(family, timeout=30)
            assert not alive, "a session has outlived its agent"
            assert list(agent.workdir.iterdir()), "there was something to sweep"
            (folder / "port").unlink()
            with running(program, folder) as another:
                another.works()

        yield agent, start_again


def test_the_agent_is_killed_in_the_middle_of_an_upload(killed):
    agent, start_again = killed
    connection = agent.socket(hello())
    receive(connection, 8 + len("server:"))
    connection.sendall((1 << 20).to_bytes(8, "little") + bytes(1000))
    eventually(lambda: agent.status()["state"] == "busy", "the session")
    start_again()
    with pytest.raises((ConnectionError, EOFError)):
        receive(connection, 1)


def test_the_agent_is_killed_in_the_middle_of_a_run(killed):
    from tvm.error import InternalError

    agent, start_again = killed
    call = agent.session_with_faults()
    import threading

    errors: list[BaseException] = []

    def run() -> None:
        try:
            call("spin")
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    time.sleep(0.3)
    start_again()
    thread.join(30)
    assert len(errors) == 1, "the client waits for an agent that is gone"
    assert isinstance(errors[0], InternalError), errors[0]


def test_an_agent_that_is_stopped_tells_the_client(native: Program, tmp_path: Path):
    with running(native, tmp_path / "agent") as agent:
        call = agent.session_with_faults()
        (child,) = psutil.Process(agent.process.pid).children()
        eventually(lambda: child.status() == psutil.STATUS_SLEEPING, "waiting for a call")
        agent.process.terminate()
        assert agent.process.wait(30) == 0
        fails(lambda: call("answer"), "board: session ended: the agent is being stopped")
        assert not list(agent.workdir.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        result = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount on this machine")
    if result.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(program: Program, tmp_path: Path, small_disk: Path):
    with running(program, tmp_path / "agent", "--workdir", str(small_disk)) as agent:
        session = agent.connect()
        fails(
            lambda: bounded(lambda: session.upload(bytearray(1 << 20), "large.bin")),
            "board: cannot write large.bin: No space left on device",
        )
        assert bounded(lambda: session.listdir("")) == ""
        bounded(lambda: session.upload(bytearray(1000), "small.bin"))
        session = None
        agent.works()
        eventually(lambda: not list(small_disk.glob("*/*")), "the folders' end")


def test_a_disk_without_room_for_a_folder(native: Program, tmp_path: Path, small_disk: Path):
    with running(native, tmp_path / "agent", "--workdir", str(small_disk)) as agent:
        (own,) = small_disk.iterdir()
        own.chmod(0o500)
        (own / "1").touch()  # what a session's folder would be called
        fails(agent.connect, "board: no session: its folder .* cannot be made")
        (own / "1").unlink()
        own.chmod(0o700)
        agent.works()


def test_many_sessions_leave_nothing(native_agent: Agent):
    native_agent.works()
    native_agent.last_end()
    before = native_agent.descriptors()
    for index in range(200):
        session = native_agent.connect()
        content = bytes([index]) * 1000
        bounded(lambda s=session, c=content: s.upload(bytearray(c), "file"))  # type: ignore[misc]
        assert bytes(bounded(lambda s=session: s.download("file"))) == content  # type: ignore[misc]
        del session
    eventually(lambda: native_agent.status()["state"] == "free", "free again")
    eventually(lambda: not native_agent.leftovers(), "nothing left behind")
    eventually(lambda: native_agent.descriptors() == before, "no descriptor left open")
    assert len(native_agent.status()["sessions"]) == 32
