"""A search that is killed, again and again, and loses nothing that it had finished."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tvm_mobilenet.tuning.store import Reading, Store

KILLS = 20


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_the_rounds_in_flight_at_most(colour_onnx: Path, tmp_path: Path):
    """Every second one early, while it starts; the others somewhere in the rounds after it."""
    root = Path(__file__).parents[2]
    logs, rng = tmp_path / "logs", random.Random(9)
    store = Store(logs)
    command = [sys.executable, "-m", "tvm_mobilenet", "tune", str(colour_onnx)]
    command += ["--trials", "1000", "--logs", str(logs)]
    before = Reading()
    for kill in range(KILLS):
        process = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while kill % 2 and len(store.read("host").sessions) == len(before.sessions):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2 if kill % 2 else 6))
        assert process.poll() is None
        finished = store.read("host")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
        found = store.read("host")
        # The line that it was writing is cut short at most; the next search takes it off.
        assert len(found.problems) <= 1
        assert found.trials[: len(finished.trials)] == finished.trials
        measured = [r for r in found.trials if r.verdict in ("measured", "rejected")]
        # A round is written with what it took from the budget; two are in flight.
        assert len(measured) - sum(s.trials for s in found.sessions) <= 16
        before = found
    assert len(before.sessions) >= KILLS // 2
    # What a search killed before it had workers leaves behind, the next one takes away.
    assert len(list(tmp_path.glob("tvm-mobilenet-*"))) <= 1
