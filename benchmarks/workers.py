"""One process per engine and thread count, and bursts that never overlap.

An engine's thread pool spins after an inference, waiting for the next one. Seen with two threads on
two processors: TVM for 170 ms, ONNX Runtime for 40, ncnn (libgomp) for 9, OpenVINO for 1, MNN not
at all. In one
process, or with bursts back to back, the pool that has just been left takes a processor from the
engine that is measured next. So each engine has a process; one burst is asked of one process at a
time; and a process answers only when its own CPU time has stopped growing (`Burst.linger_ms` says
how long that took). Idle workers sleep in a read on their pipe; `Burst.idle_cpu_ms` would tell if
one did not.
"""

from __future__ import annotations

import gc
import multiprocessing as mp
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np

from benchmarks.absence import EngineUnavailableError
from benchmarks.engine import Engine, Job
from benchmarks.engines import ENGINES, silence_stdout

__all__ = ["Burst", "BurstPlan", "Loaded", "Worker"]


@dataclass(frozen=True, slots=True)
class BurstPlan:
    """How long an engine computes when its turn comes."""

    warmup_ms: float = 15.0
    """Not counted: clocks, caches and the thread pool come back from rest."""
    measured_ms: float = 60.0
    min_warmups: int = 2
    min_inferences: int = 5


@dataclass(frozen=True, slots=True)
class Burst:
    """The inferences of one turn."""

    latencies_ms: tuple[float, ...]
    idle_cpu_ms: float
    """CPU time that the worker used between its last turn and this one."""
    linger_ms: float
    """How long the engine's threads kept spinning after the last inference."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that is ready."""

    version: str
    note: str
    load_ms: float
    outputs: tuple[np.ndarray, ...]


class Worker:
    """Handle on a process that holds one engine at one thread count."""

    def __init__(self, engine: str, threads: int) -> None:
        self.engine = engine
        self.threads = threads
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(engine, theirs), name=f"{engine}-{threads}", daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def load(self, job: Job, timeout_s: float = 120.0) -> Loaded:
        """Load a model, compute once and return the outputs.

        Raises:
            EngineUnavailableError: with the engine's own reason.
        """
        reply = self._ask(job, timeout_s)
        assert isinstance(reply, Loaded)
        return reply

    def burst(self, plan: BurstPlan, timeout_s: float = 60.0) -> Burst:
        """Run one turn and return when the engine's threads are at rest again."""
        reply = self._ask(plan, timeout_s)
        assert isinstance(reply, Burst)
        return reply

    def outputs(self, timeout_s: float = 60.0) -> tuple[np.ndarray, ...]:
        """Return what the last inference computed."""
        reply = self._ask("outputs", timeout_s)
        assert isinstance(reply, tuple)
        return reply

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, request: Job | BurstPlan | str, timeout_s: float) -> object:
        try:
            self._pipe.send(request)
            if not self._pipe.poll(timeout_s):
                raise EngineUnavailableError(f"no answer in {timeout_s:.0f} s")
            reply = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(timeout=5)
            raise EngineUnavailableError(
                f"its process died (exit code {self._process.exitcode})"
            ) from None
        if isinstance(reply, Exception):
            raise reply
        return reply


def _serve(engine_name: str, pipe: Connection) -> None:
    silence_stdout()
    engine: Engine | None = None
    rested_at = time.process_time()
    while True:
        try:
            request = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        reply: Loaded | Burst | tuple[np.ndarray, ...] | Exception
        try:
            if isinstance(request, Job):
                engine = None  # frees the model before
                gc.collect()
                engine, reply = _load(engine_name, request)
            elif request == "outputs":
                assert engine is not None
                reply = tuple(engine.outputs())
            else:
                assert engine is not None
                idle_cpu_ms = (time.process_time() - rested_at) * 1e3
                reply = _run_burst(engine, request, idle_cpu_ms)
        except KeyboardInterrupt:
            return
        except EngineUnavailableError as err:
            reply = err
        except Exception as err:  # an engine may raise anything; the table shows it as its reason
            traceback.print_exc()
            reply = EngineUnavailableError(f"{type(err).__name__}: {err}")
        rested_at = time.process_time()
        pipe.send(reply)


def _load(name: str, job: Job) -> tuple[Engine, Loaded]:
    start = time.perf_counter()
    try:
        engine = ENGINES[name](job)
    except ImportError as err:
        raise EngineUnavailableError(f"cannot be imported: {err}") from err
    load_ms = (time.perf_counter() - start) * 1e3
    engine.on_its_thread(engine.infer)
    outputs = tuple(engine.outputs())
    _wait_for_rest()
    return engine, Loaded(engine.version, engine.note, load_ms, outputs)


def _run_burst(engine: Engine, plan: BurstPlan, idle_cpu_ms: float) -> Burst:
    gc.disable()
    try:
        latencies = engine.on_its_thread(lambda: _turn(engine, plan))
    finally:
        gc.enable()
    return Burst(tuple(latencies), idle_cpu_ms, _wait_for_rest())


def _turn(engine: Engine, plan: BurstPlan) -> Sequence[float]:
    _timed(engine, plan.warmup_ms, plan.min_warmups)
    return _timed(engine, plan.measured_ms, plan.min_inferences)


def _timed(engine: Engine, at_least_ms: float, at_least: int) -> Sequence[float]:
    clock = time.perf_counter_ns
    infer, refill = engine.infer, engine.refill
    latencies: list[float] = []
    begin = clock()
    while True:
        refill()
        start = clock()
        infer()
        end = clock()
        latencies.append((end - start) / 1e6)
        if len(latencies) >= at_least and end - begin >= at_least_ms * 1e6:
            return latencies


_STEP_S = 0.005
_QUIET_STEPS = 3
"""The kernel adds up a running thread's time once a tick, which is up to 10 ms long: a shorter
look sees a spinning thread stand still."""


def _wait_for_rest(limit_ms: float = 500.0) -> float:
    """Sleep until this process uses no more CPU time; return for how long it still did, in ms."""
    begin = rested_at = time.perf_counter()
    quiet = 0
    while quiet < _QUIET_STEPS and (time.perf_counter() - begin) * 1e3 < limit_ms:
        before = time.process_time()
        time.sleep(_STEP_S)
        if time.process_time() - before < 0.1 * _STEP_S:
            quiet += 1
        else:
            quiet, rested_at = 0, time.perf_counter()
    return (rested_at - begin) * 1e3
