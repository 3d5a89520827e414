"""Ending a session: whatever came of its leader, polite or not, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from tvm_mobilenet.boards import processes
from tvm_mobilenet.boards.processes import end_session

# Starts a child of its own, tells the child's number, and waits.
PARENT = """
import os, signal, subprocess, sys, time
{deaf}
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session={own_session})
print(child.pid, flush=True)
time.sleep(600)
"""
SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.fixture
def start():
    started = []

    def run(*, deaf: bool = False, own_session: bool = False):
        ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if deaf else ""
        source = PARENT.format(deaf=ignore, child=SLEEPER, own_session=own_session)
        process = subprocess.Popen(
            [sys.executable, "-c", source], stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        return process, child

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("own_session", [False, True])
def test_ends_leader_and_child(start, own_session):
    leader, child = start(own_session=own_session)
    assert end_session(leader.pid, psutil.Process(leader.pid).create_time())
    assert leader.poll() is not None
    assert is_gone(child)


def test_kills_a_leader_that_does_not_listen(start, monkeypatch):
    monkeypatch.setattr(processes, "_POLITE_S", 0.2)
    leader, child = start(deaf=True)
    assert end_session(leader.pid, psutil.Process(leader.pid).create_time())
    assert leader.poll() is not None
    assert is_gone(child)


def test_ends_what_outlived_its_leader(start):
    leader, child = start()
    began = psutil.Process(leader.pid).create_time()
    leader.kill()
    leader.wait()
    assert not is_gone(child)
    assert end_session(leader.pid, began)
    assert is_gone(child)


def test_leaves_a_process_alone_that_has_the_number_by_chance(start):
    leader, child = start()
    assert end_session(leader.pid, time.time() - 3600)
    assert leader.poll() is None
    assert not is_gone(child)
    child.kill()
