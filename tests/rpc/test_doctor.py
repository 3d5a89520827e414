"""Every link of the chain is named where it breaks, with what mends it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet.errors import DeviceError, UsageError
from tvm_mobilenet.rpc import doctor as doctor_module
from tvm_mobilenet.rpc.address import parse_address
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.rpc.doctor import diagnose
from tvm_mobilenet.rpc.one_kernel import build_one_kernel
from tvm_mobilenet.rpc.tracker_client import tracker_state


def states(found) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


@pytest.fixture
def tracked(start_tracker, start_agent):
    """A tracker with one board of the key `pi`."""
    tracker = start_tracker()
    start_agent("--tracker", tracker.address, "--key", "pi")
    while not tracker_state(parse_address(tracker.address)).boards:
        time.sleep(0.02)
    return tracker


def test_a_healthy_chain(tracked):
    found = diagnose(tracker=tracked.address, key="pi")
    assert found.broken is None, found
    assert list(states(found)) == [
        "tracker",
        "key",
        "free",
        "session",
        "agent",
        "versions",
        "upload",
        "kernel",
        "OpenCL",
        "clock",
    ]
    assert set(states(found).values()) <= {"ok", "note"}
    assert states(found)["kernel"] == "ok"
    found.check()
    assert json.loads(json.dumps(found.to_dict()))["healthy"] is True


def test_a_board_without_a_tracker(agent):
    found = diagnose(agent.address)
    assert found.broken is None
    assert next(iter(states(found))) == "session"


def test_a_stock_server_works_and_is_remarked_on(stock_server):
    found = diagnose(stock_server.address)
    assert found.broken is None
    assert states(found)["agent"] == "note"
    assert states(found)["kernel"] == "ok"


def broken_at(found, name: str) -> str:
    assert found.broken is not None
    assert found.broken.name == name
    after = [check.state for check in found.checks[found.checks.index(found.broken) + 1 :]]
    assert set(after) <= {"not reached"}
    with pytest.raises(DeviceError, match=f"{name}: ") as caught:
        found.check()
    assert caught.value.exit_code == 4
    assert found.broken.fix
    return found.broken.found


def test_no_tracker_there():
    assert "refused" in broken_at(diagnose(tracker="127.0.0.1:1", key="pi"), "tracker")


def test_no_such_key(tracked):
    found = broken_at(diagnose(tracker=tracked.address, key="rock"), "key")
    assert "registered: pi" in found


def test_a_board_that_is_busy(tracked):
    session = connect(tracker=tracked.address, key="pi").session()
    try:
        found = diagnose(tracker=tracked.address, key="pi", timeout_s=2.5)
        assert states(found)["free"] == "note"
        assert "is held by" in broken_at(found, "session")
    finally:
        session.close()


def test_no_board_there():
    assert "refused" in broken_at(diagnose("127.0.0.1:1"), "session")


def test_a_key_that_is_missing(start_agent, key_file: Path):
    agent = start_agent("--auth-key-file", key_file)
    broken_at(diagnose(agent.address, timeout_s=5), "session")
    assert diagnose(agent.address, auth_key_file=key_file).broken is None


def test_another_tvm_on_the_board(agent, monkeypatch):
    import tvm

    monkeypatch.setattr(tvm, "__version__", "0.99")
    assert "TVM 0.99 here and 0.27" in broken_at(diagnose(agent.address), "versions")


def test_a_board_that_miscalculates(agent, monkeypatch):
    monkeypatch.setattr(doctor_module, "expected_values", lambda x: x + np.float32(7))
    assert "something else than numpy" in broken_at(diagnose(agent.address), "kernel")


def test_neither_board_nor_tracker():
    with pytest.raises(UsageError, match="neither were given"):
        diagnose()


def test_a_kernel_is_built_for_every_kind_of_board(tmp_path: Path):
    from tvm_mobilenet.elf import library_machine

    for machine in ("aarch64", "x86-64"):
        path = tmp_path / f"{machine}.so"
        path.write_bytes(build_one_kernel(machine))
        assert library_machine(path) == machine
    with pytest.raises(DeviceError, match="nothing can be compiled for riscv"):
        build_one_kernel("riscv")
