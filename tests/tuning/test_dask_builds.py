"""Builds on a Dask cluster of two local workers, one of which is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.conftest import MATMUL
from tvm_mobilenet.errors import SpecError, TuningError, UsageError
from tvm_mobilenet.targets import TargetSpec
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.dask_builds import DaskBuilds
from tvm_mobilenet.tuning.records import plan_to_json, workload_to_json
from tvm_mobilenet.tuning.space import Space
from tvm_mobilenet.tuning.workers import CandidateError

pytest.importorskip("distributed", reason="needs the extra dask")

ROOT = Path(__file__).parents[2]


class Cluster:
    """A scheduler and its workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.workers: list[subprocess.Popen[bytes]] = []
        words = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"]
        self.scheduler = self._start("scheduler", *words)

    def _start(self, role: str, *words: str) -> subprocess.Popen[bytes]:
        number = len(self.workers)
        with (self.folder / f"{role}-{number}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", role, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def add_worker(self) -> subprocess.Popen[bytes]:
        words = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
        worker = self._start("worker", self.address, *words)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        found = Cluster(tmp_path)
        stack.callback(found.close)
        yield found


def requests(target: TargetSpec, count: int) -> list[dict[str, Any]]:
    space = Space(MATMUL, target.cpu)
    plans = [space.start, *space.neighbours(space.start)]
    workload = workload_to_json(MATMUL)
    return [
        {"workload": workload, "plan": plan_to_json(plans[i % len(plans)])} for i in range(count)
    ]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_build(host: TargetSpec, cluster: Cluster):
    first = cluster.add_worker()
    cluster.add_worker()
    settings = {"target": host.model_dump_json(by_alias=True), "compiler": None, "folder": "/none"}
    builds = DaskBuilds(cluster.address, settings, alone_s=4)
    try:
        builds._client.wait_for_workers(2, timeout=120)
        futures = [builds.submit(request) for request in requests(host, 24)]
        bad = builds.submit({"workload": workload_to_json(MATMUL), "plan": {"kind": "none"}})
        end = time.monotonic() + 240
        while sum(future.done() for future in futures) < 4:
            assert time.monotonic() < end, "nothing is built"
            time.sleep(0.05)
        assert not all(future.done() for future in futures)
        os.killpg(first.pid, signal.SIGKILL)
        for future in futures:
            assert future.result(240)["library"]
        assert isinstance(bad.exception(240), CandidateError)
        # And where the last one goes, the search ends rather than wait for ever.
        os.killpg(cluster.workers[1].pid, signal.SIGKILL)
        lost = builds.submit(requests(host, 1)[0])
        with pytest.raises(TuningError, match="no worker is left, for 4 s"):
            lost.result(120)
    finally:
        builds.close()


@pytest.mark.slow
def test_a_model_is_tuned_with_builds_of_a_cluster(
    host: TargetSpec, cluster: Cluster, colour_onnx: Path, tmp_path: Path
):
    cluster.add_worker()
    report = tune_model(
        colour_onnx,
        target=host,
        threads=1,
        trials=6,
        logs=tmp_path / "logs",
        builders=cluster.address,
    )
    assert report.trials == 6
    assert all(task.best for task in report.tasks)


def test_builders_are_a_number_or_a_scheduler(colour_onnx: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="builders many: give a number of processes, or a Dask"):
        tune_model(colour_onnx, trials=1, builders="many", logs=tmp_path)
    with pytest.raises(SpecError, match="builders 0: give 1 or more"):
        tune_model(colour_onnx, trials=1, builders="0", logs=tmp_path)


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"install the extra: pip install 'tvm-mobilenet\[dask\]'"):
        DaskBuilds("tcp://127.0.0.1:1", {"target": "", "compiler": None})
