"""A thread whose TVM thread pool has exactly the size that was asked for.

TVM keeps one pool for each calling thread. Its size is fixed when it is first used, by default at
half of an x86 machine's processors, and using it pins the calling thread to a few processors, which
every thread started from there inherits: ONNX Runtime in the same process would be left on one
core. So nothing here runs on the caller's thread: a `ComputeThread` makes its own pool, of its own
size, and takes the pinning on itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from tvm_mobilenet.errors import DeviceError, SpecError
from tvm_mobilenet.host import cpu_quota

__all__ = ["ComputeThread", "default_threads", "resolve_threads"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_ONE_CORE_PER_THREAD = -2  # tvm/src/runtime/threading_backend.h, kSpecifyOneCorePerThread


def default_threads() -> int:
    """Return how many threads to compute with where nothing is said: one for each fast core.

    No more than the control group grants: threads beyond its quota only wait for each other.
    """
    fast, _ = _ranked_cpus()
    return min(len(fast), cpu_quota() or len(fast))


def resolve_threads(threads: int | None, cpus: Sequence[int] = ()) -> int:
    """Return the number of threads to use.

    None stands for one on each of `cpus`, and where those are not named for `default_threads`.

    Raises:
        SpecError: fewer than one, more than this process may run on, or processors that it may not.
    """
    if cpus:
        allowed = sorted(os.sched_getaffinity(0))
        missing = [cpu for cpu in cpus if cpu not in allowed]
        if missing:
            raise SpecError(
                f"cpus {missing[0]}: this process may not run there; give some of "
                f"{','.join(map(str, allowed))}"
            )
        if threads is not None and threads > len(cpus):
            raise SpecError(
                f"threads {threads}: more than the {len(cpus)} processors of --cpus; give as many"
            )
    if threads is None:
        return len(cpus) or default_threads()
    available = len(os.sched_getaffinity(0))
    if not 1 <= threads <= available:
        raise SpecError(
            f"threads {threads}: this process may use {available} "
            f"processor{'s' if available > 1 else ''}; give 1 to {available}"
        )
    return threads


class ComputeThread:
    """A thread of its own that computes with `threads` threads, itself among them, on `cpus`.

    Use it as a context manager or `close` it; the pool's threads end with it.
    """

    def __init__(self, threads: int | None = None, cpus: Sequence[int] = ()) -> None:
        self.threads = resolve_threads(threads, cpus)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tvm-mobilenet")
        self.call(_configure_pool, self.threads, tuple(cpus))

    def call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run `function` on the thread and return what it returns."""
        return self._executor.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """End the thread, once what it is doing is done."""
        self._executor.shutdown()

    def __enter__(self) -> ComputeThread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _configure_pool(threads: int, wanted: Sequence[int]) -> None:
    """Make the calling thread's pool, which must not have been used before."""
    import tvm

    fast, rest = (list(wanted), []) if wanted else _ranked_cpus()
    cpus = [*fast, *rest][:threads]
    tvm.get_global_func("runtime.config_threadpool")(
        _ONE_CORE_PER_THREAD, threads, [str(cpu) for cpu in cpus]
    )
    found = tvm.get_global_func("runtime.NumThreads")()
    if found != threads:
        raise DeviceError(
            f"threads {threads}: TVM's thread pool has {found}; run in a process of its own"
        )
    # TVM pins the workers, not their caller. Left free it may share a core with a worker that spins
    # while it waits, and the scheduler takes longer than an inference to part the two (seen: half
    # the peak for as long as the measurement took). Alone, it is better off free to move.
    os.sched_setaffinity(0, fast if threads == 1 else cpus[:1])


def _ranked_cpus() -> tuple[list[int], list[int]]:
    """Return the processors of this process: one for each fast core, then the others.

    A core is fast if no other has a higher clock or capacity; of two hardware threads of one core,
    the second comes with the others.
    """
    cpus = sorted(os.sched_getaffinity(0))
    speeds = {cpu: _speed(cpu) for cpu in cpus}
    top = max(speeds.values())
    fast: list[int] = []
    rest: list[int] = []
    cores = set()
    for cpu in sorted(cpus, key=lambda cpu: -speeds[cpu]):
        core = _read(cpu, "topology/thread_siblings_list") or str(cpu)
        is_first = core not in cores
        cores.add(core)
        (fast if is_first and speeds[cpu] == top else rest).append(cpu)
    return fast, rest


def _speed(cpu: int) -> int:
    text = _read(cpu, "cpu_capacity") or _read(cpu, "cpufreq/cpuinfo_max_freq")
    return int(text) if text else 0


def _read(cpu: int, name: str) -> str | None:
    try:
        return (_CPU_FOLDER / f"cpu{cpu}" / name).read_text(encoding="ascii").strip()
    except OSError:
        return None
