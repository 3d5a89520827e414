"""Building candidates on a Dask cluster, where this machine's processors are what limits a search.

What goes out is plain data, a workload and a plan; what comes back is a library in base 64. Dask
itself pickles the call: whoever may speak to the scheduler may run code on its workers and in this
process. See docs/tuning.md for what that means.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import tvm_mobilenet
from tvm_mobilenet.errors import TuningError, UsageError
from tvm_mobilenet.tuning.recorded import tvm_version
from tvm_mobilenet.tuning.records import WRITER_VERSION
from tvm_mobilenet.tuning.workers import BUILD_NICENESS, CandidateError, WorkerProcess

__all__ = ["DaskBuilds"]

logger = logging.getLogger(__name__)

_CONNECT_S = 20.0
_BUILD_S = 120.0
_LOOK_S = 2.0
_ALONE_S = 60.0
"""A search waits so long for a worker where the cluster has none left."""
_RETRIES = 5


class DaskBuilds:
    """Builds candidates as `BuildPool` does, on the workers of a scheduler.

    A worker that dies costs nothing but time: what it had is built by another.

    Args:
        scheduler: its address, `tcp://HOST:PORT`.
        settings: `target` and `compiler`, as `Builder` takes them.
        alone_s: how long a cluster without a worker is waited for.

    Raises:
        UsageError: the extra `dask` is not installed.
        TuningError: no scheduler answers there, it has no worker, or one of another version.
    """

    def __init__(
        self, scheduler: str, settings: Mapping[str, Any], *, alone_s: float = _ALONE_S
    ) -> None:
        try:
            import distributed
        except ImportError as err:
            raise UsageError(
                f"builders {scheduler}: Dask is not installed here; install the extra: "
                "pip install 'tvm-mobilenet[dask]'"
            ) from err
        self._scheduler = scheduler
        self._settings = {key: settings[key] for key in ("target", "compiler")}
        self._alone_s = alone_s
        self._pending: dict[Future[dict[str, Any]], Any] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        try:
            self._client = distributed.Client(scheduler, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError) as err:
            raise TuningError(
                f"builders {scheduler}: no Dask scheduler answers there ({type(err).__name__}); "
                "start one with 'dask scheduler', or give a number of processes"
            ) from err
        try:
            self._check_workers()
        except BaseException:
            self._client.close()
            raise
        self._watch = threading.Thread(target=self._watch_workers, daemon=True)
        self._watch.start()

    def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Queue a build; the future raises `CandidateError` where it fails."""
        answer: Future[dict[str, Any]] = Future()
        task = self._client.submit(
            build_on_worker, self._settings, dict(message), pure=False, retries=_RETRIES
        )
        with self._lock:
            self._pending[answer] = task
        task.add_done_callback(lambda done: self._take(answer, done))
        return answer

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Do nothing: the cluster's processors are others than those that measure."""
        yield

    def close(self) -> None:
        """Drop what is queued and leave the cluster."""
        self._ended.set()
        with self._lock:
            pending, self._pending = dict(self._pending), {}
        for answer, task in pending.items():
            answer.cancel()
            task.cancel()
        self._client.close()
        self._watch.join()

    def _take(self, answer: Future[dict[str, Any]], task: Any) -> None:
        """Hand a result on; runs in a thread of Dask's."""
        with self._lock:
            if self._pending.pop(answer, None) is None:
                return
        if task.status != "finished":
            reason = type(task.exception()).__name__ if task.status == "error" else task.status
            _fail(answer, CandidateError(f"it could not be built on the cluster: {reason}"))
            return
        found: dict[str, Any] = task.result()
        if "error" in found:
            _fail(answer, CandidateError(found["error"]))
        elif answer.set_running_or_notify_cancel():
            answer.set_result(found)

    def _check_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=_CONNECT_S)
            found = self._client.run(versions)
        except TimeoutError:
            raise TuningError(
                f"builders {self._scheduler}: it has no worker; start some with "
                f"'dask worker {self._scheduler}'"
            ) from None
        except Exception as err:
            raise TuningError(
                f"builders {self._scheduler}: a worker cannot build: {type(err).__name__}: {err}; "
                "install tvm-mobilenet there"
            ) from err
        for worker, there in found.items():
            if there != versions():
                raise TuningError(
                    f"builders {self._scheduler}: worker {worker} has {there}, this is "
                    f"{versions()}; install the same there"
                )
        logger.info("%d Dask workers build", len(found))

    def _watch_workers(self) -> None:
        """Give up where no worker is left for too long: Dask itself would wait for ever."""
        alone_s = 0.0
        while not self._ended.wait(_LOOK_S):
            is_alone = not self._client.scheduler_info().get("workers")
            alone_s = alone_s + _LOOK_S if is_alone else 0.0
            if alone_s <= self._alone_s:
                continue
            with self._lock:
                pending, self._pending = dict(self._pending), {}
            for answer in pending:
                _fail(
                    answer,
                    TuningError(
                        f"builders {self._scheduler}: no worker is left, for {self._alone_s:g} s; "
                        "start some, and the same command goes on where it was"
                    ),
                )


def _fail(answer: Future[dict[str, Any]], reason: Exception) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_exception(reason)


def versions() -> dict[str, str]:
    """Return what must be the same here and on a worker; it runs on both."""
    return {
        "tvm_mobilenet": tvm_mobilenet.__version__,
        "tvm": tvm_version(),
        "kernel writers": str(WRITER_VERSION),
    }


_local = threading.local()


def build_on_worker(settings: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """Build one candidate on a worker, in a process of its own that a candidate may crash."""
    if getattr(_local, "settings", None) != settings:
        folder = tempfile.TemporaryDirectory(prefix="tvm-mobilenet-")
        _local.folder = folder  # removed with this thread
        _local.worker = WorkerProcess(
            "tvm_mobilenet.tuning.building:Builder",
            {**settings, "folder": folder.name},
            folder=folder.name,
            niceness=BUILD_NICENESS,
        )
        _local.settings = settings
    worker: WorkerProcess = _local.worker
    try:
        return worker.request(message, _BUILD_S)
    except CandidateError as err:
        return {"error": str(err)}
