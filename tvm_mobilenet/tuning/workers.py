"""Processes that build and measure, and that may crash or hang without harm to the search."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import tvm_mobilenet
from tvm_mobilenet.errors import TuningError

__all__ = ["BUILD_NICENESS", "BuildPool", "Builds", "CandidateError", "WorkerProcess"]

_START_TIMEOUT_S = 120.0  # importing TVM from a cold disk
_CLOSE_TIMEOUT_S = 2.0
BUILD_NICENESS = 10
"""What is being timed goes first."""


class CandidateError(Exception):
    """One candidate is of no use: it does not build, crashes, hangs or computes something else."""


class WorkerProcess:
    """A process that answers one request at a time, each a line of JSON.

    It is started when first needed, and again after it died. It ends with this process, however
    that ends.

    Args:
        handler: what answers there, `module:Class`; see `tvm_mobilenet.tuning.worker`.
        settings: what the class is made of.
        folder: what this process works in; it is removed should this process be killed.
        niceness: how far it stands back for others.
    """

    def __init__(
        self,
        handler: str,
        settings: Mapping[str, Any],
        *,
        folder: str | None = None,
        niceness: int = 0,
    ) -> None:
        self._handler = handler
        self._folder = folder
        self._niceness = niceness
        self._settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def request(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a message and return the answer.

        Raises:
            CandidateError: the process answered with an error, died, or did not answer in time.
            TuningError: it cannot even be started.
        """
        if self._process is None:
            self._start()
        answer = self._exchange(message, timeout_s)
        if "error" in answer:
            raise CandidateError(answer["error"])
        return answer

    def kill(self) -> None:
        """End the process at once; whoever waits for its answer gets an error."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._buffer = b""

    def _start(self) -> None:
        package = str(Path(tvm_mobilenet.__file__).parent.parent)
        search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(search),
            # References are computed by numpy, beside threads that are being timed.
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tvm_mobilenet.tuning.worker", self._handler],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            # Ctrl-C goes to the search, which ends its workers itself.
            start_new_session=True,
        )
        try:
            start = {
                "settings": self._settings,
                "parent": os.getpid(),
                "folder": self._folder,
                "niceness": self._niceness,
            }
            self._exchange(start, _START_TIMEOUT_S)
        except CandidateError as err:
            self.close()
            raise TuningError(
                f"a process of the search cannot be started: {err}; try "
                f"'{sys.executable} -m tvm_mobilenet.tuning.worker {self._handler}'"
            ) from err

    def _exchange(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise CandidateError(self._end()) from None
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self._process.kill()
                self._end()
                raise CandidateError(f"it hung: no answer within {timeout_s:g} s")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise CandidateError(self._end())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> str:
        """Reap a process that died and say how it did."""
        assert self._process is not None
        try:
            code = self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.close()
        if code < 0:
            return f"it crashed: {signal.Signals(-code).name}"
        return f"its process ended with code {code}"


class Builds(Protocol):
    """What builds candidates for a search."""

    def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Queue a build; the future raises `CandidateError` where it fails."""

    def quiet(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is built that would disturb a measurement."""

    def close(self) -> None:
        """Drop what is queued, and end."""


class BuildPool:
    """Builds candidates in several processes at once.

    Args:
        settings: what every process is told when it starts.
        workers: how many there are.
        rests: whether building rests while something is timed; where the processors do not
            suffice for both, a kernel cut among threads takes up to twice its time.
        timeout_s: how long one candidate may take.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        workers: int,
        *,
        rests: bool = True,
        timeout_s: float = 60,
    ) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._local = threading.local()
        self._workers: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._rests = rests
        self._at_work = 0
        self._is_quiet = False
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="build")

    def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Queue a build; the future raises `CandidateError` where it fails."""
        return self._threads.submit(self._build, message)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold back new builds, once those begun are done, for as long as the block lasts."""
        if not self._rests:
            yield
            return
        with self._changed:
            self._is_quiet = True
            self._changed.wait_for(lambda: self._at_work == 0)
        try:
            yield
        finally:
            with self._changed:
                self._is_quiet = False
                self._changed.notify_all()

    def close(self) -> None:
        """Drop what is queued and end the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.close()

    def _build(self, message: Mapping[str, Any]) -> dict[str, Any]:
        worker: WorkerProcess | None = getattr(self._local, "worker", None)
        if worker is None:
            worker = self._local.worker = WorkerProcess(
                "tvm_mobilenet.tuning.building:Builder",
                self._settings,
                folder=self._settings["folder"],
                niceness=BUILD_NICENESS,
            )
            with self._lock:
                self._workers.append(worker)
        with self._changed:
            self._changed.wait_for(lambda: not self._is_quiet)
            self._at_work += 1
        try:
            return worker.request(message, self._timeout_s)
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()
