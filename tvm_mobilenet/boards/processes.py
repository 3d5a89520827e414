"""Ending a process that leads a session, with all that came of it."""

from __future__ import annotations

import os

import psutil

__all__ = ["end_session"]

_POLITE_S = 5.0
_KILL_S = 10.0


def end_session(leader_pid: int, leader_started: float | None) -> bool:
    """End the session that `leader_pid` leads: first ask the leader, then kill what is left.

    Returns once nothing of it runs any more.

    Args:
        leader_pid: the process that was started in a session of its own.
        leader_started: when it was, seconds since 1970: a process of that number that began at
            another time is somebody else's. None where the leader is known to be gone.

    Returns:
        Whether everything has ended; False where a process survived its killing, stuck in the
        kernel.
    """
    family = _family(leader_pid, leader_started)
    for process in family:
        if process.pid == leader_pid:
            _send(process, "terminate")
            psutil.wait_procs([process], timeout=_POLITE_S)
    # What the leader has started meanwhile is of the family too.
    family = list({*family, *_family(leader_pid, leader_started)})
    for process in family:
        _send(process, "kill")
    _, left = psutil.wait_procs(family, timeout=_KILL_S)
    return all(_is_gone(process) for process in left)


def _family(leader_pid: int, leader_started: float | None) -> list[psutil.Process]:
    """Return the leader, its descendants, and whatever else is in its session."""
    try:
        leader = psutil.Process(leader_pid)
        if leader_started is None or abs(leader.create_time() - leader_started) >= 1.0:
            return []  # the number went to somebody else, so nothing of the session is left
        found = {leader, *leader.children(recursive=True)}
    except psutil.NoSuchProcess:
        found = set()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader_pid:
                found.add(process)
        except (ProcessLookupError, PermissionError):
            continue  # it has ended meanwhile, or is somebody else's
    return list(found)


def _send(process: psutil.Process, verb: str) -> None:
    try:
        getattr(process, verb)()
    except psutil.NoSuchProcess:
        return


def _is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; one that its parent has not asked after yet counts as ended."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
