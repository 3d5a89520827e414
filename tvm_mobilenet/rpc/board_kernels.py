"""Running a search's candidates on one board: right result first, then its cost.

It runs in a worker process of its own (`tvm_mobilenet.tuning.worker`), so that several boards
measure at once, and holds a session there for as long as it lasts.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from tvm_mobilenet.elf import machine_name
from tvm_mobilenet.errors import (
    DeviceError,
    DeviceTimeoutError,
    DeviceUnreachableError,
    SessionEndedError,
)
from tvm_mobilenet.facts import BoardFacts, throttling
from tvm_mobilenet.rpc.address import parse_address
from tvm_mobilenet.rpc.board_device import BoardDevice
from tvm_mobilenet.rpc.deadline import Timeouts
from tvm_mobilenet.rpc.session import BoardSession
from tvm_mobilenet.schedule.workload import TunableWorkload
from tvm_mobilenet.tuning.kernels import calls
from tvm_mobilenet.tuning.operands import Array, Operands
from tvm_mobilenet.tuning.records import canonical, plan_from, workload_from
from tvm_mobilenet.tuning.reference import largest_error, make_operands, reference, spoilt
from tvm_mobilenet.tuning.statistics import is_tight, typical
from tvm_mobilenet.tuning.timing import (
    BATCH_NS,
    BURST_NS,
    HOPELESS,
    LEAST_NS,
    MOST_NS,
    take_turns,
)

__all__ = ["BoardKernels"]

logger = logging.getLogger(__name__)

_MOST_RUNS = 2000
_MOST_COPIES = 16
_SESSION_SHARE = 0.5
"""A session is given back after that part of its time, rather than be ended within a candidate."""
_KEPT_BYTES = 64 << 20
"""What is kept on a board of what earlier candidates read."""
_COOLINGS = 2
"""A throttled measurement is repeated so many times, after a rest, and then marked."""
_REOPEN_S = 10.0
"""How long a board that was lost is waited for before its candidate goes to another."""
_BY_TIME = "time limit"
_FIRST_DEVICE = 0


class _UnfitError(DeviceError):
    """The board is well, and not what candidates are built for."""


class BoardKernels:
    """Answers requests to measure one candidate or to let several compete, on a board.

    An answer is what was asked for; `{"error": ...}`, the worker's, for a candidate that is of no
    use; `{"lost": ...}` where the board has gone and the candidate is not to blame; or
    `{"unfit": ...}` where no candidate can ever be measured on it.

    Args:
        address: `HOST:PORT` of the board, or None.
        tracker: `HOST:PORT` of a tracker in its place.
        key: of the tracker's boards.
        auth_key: of board and tracker, in hexadecimal; empty where there is none.
        timeouts: the fields of `Timeouts`.
        machine: what the board must be, in `machine_name`'s words.
        uses_opencl: whether candidates run on its first OpenCL device, and are timed by that one's
            profiling events, or on its processor.
        threads: how many threads compute.
        cpus: the processors to compute on; empty for the board's choice.
        cost: what is measured.
        seed: of the operands.
        cold_bytes: see `LocalKernels`.
        rest_s: how long a throttled board rests.
    """

    def __init__(
        self,
        *,
        address: str | None,
        tracker: str | None,
        key: str | None,
        auth_key: str,
        timeouts: Mapping[str, float],
        machine: str,
        uses_opencl: bool,
        threads: int,
        cpus: Sequence[int],
        cost: Literal["latency", "instructions"],
        seed: int,
        cold_bytes: int,
        rest_s: float,
    ) -> None:
        self._device = BoardDevice(
            address=parse_address(address, "device") if address else None,
            tracker=parse_address(tracker, "tracker") if tracker else None,
            key=key,
            auth_key=bytes.fromhex(auth_key) or None,
            timeouts=Timeouts(**timeouts),
        )
        self._machine = machine
        self._uses_opencl = uses_opencl
        self._threads = threads
        self._cpus = ",".join(map(str, cpus))
        self._cost = cost
        self._seed = seed
        self._cold_bytes = cold_bytes
        self._rest_s = rest_s
        self._session: BoardSession | None = None
        self._opened_at = 0.0
        self._is_lost = False
        self._threads_now = 0
        self._key = ""
        self._workload: TunableWorkload
        self._operands: Operands
        self._expected: Array
        self._tensors: dict[bytes, Any] = {}
        self._kept_bytes = 0
        self._number = 0

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        if "workload" in request:
            self._prepare(request["workload"])
        for is_second in (False, True):
            try:
                self._ensure_session()
            except _UnfitError as err:
                return {"unfit": str(err)}
            except DeviceError as err:
                self._is_lost = True
                return {"lost": str(err)}
            try:
                return self._carry_out(request)
            except (DeviceTimeoutError, DeviceUnreachableError, SessionEndedError) as err:
                verdict = self._explain(err, is_second=is_second)
                if verdict is not None:
                    return verdict
            except DeviceError as err:
                # The board is well: its answer to this candidate is an error.
                return {"error": err.found}
        raise AssertionError("the second attempt always has a verdict")

    def close(self) -> None:
        """Free the board."""
        session, self._session = self._session, None
        self._forget_tensors()
        if session is not None:
            session.close()

    def _explain(self, err: DeviceError, *, is_second: bool) -> dict[str, Any] | None:
        """Say whose fault a lost session was, or None to try once more."""
        self.close()
        if isinstance(err, SessionEndedError):
            if _BY_TIME in err.found and not is_second:
                return None
            return {"error": f"it crashed on the board: {err.found}"}
        try:
            self._is_lost = True
            self._ensure_session()
        except DeviceError as gone:
            return {"lost": str(gone)}
        if isinstance(err, DeviceTimeoutError) and err.step in ("run", "load"):
            return {"error": f"it hung: {err.found}"}
        return {"error": f"the board hung up on it: {err.found}"} if is_second else None

    # -- the session ---------------------------------------------------------------------------

    def _ensure_session(self) -> None:
        age = time.monotonic() - self._opened_at
        if self._session is not None and age < _SESSION_SHARE * self._device.timeouts.session_s:
            return
        self.close()
        timeouts = self._device.timeouts
        if self._is_lost:
            # A tracker may have no other board for it: the search is not to wait for that.
            timeouts = replace(timeouts, queue_s=min(_REOPEN_S, timeouts.queue_s))
        session = replace(self._device, timeouts=timeouts).session()
        try:
            for name in ("time_calls", "count_calls"):
                session.function(name)  # an older agent has neither
            facts = _facts(session)
            if facts.machine is not None and machine_name(facts.machine) != self._machine:
                raise _UnfitError(
                    f"it is a {facts.machine} machine, candidates are built for {self._machine}; "
                    "give the target that it is",
                    device=session.name,
                    step="facts",
                )
            if self._uses_opencl:
                self._use_opencl(session)
        except BaseException:
            session.close()
            raise
        self._session = session
        self._is_lost = False
        self._opened_at = time.monotonic()
        self._threads_now = 0

    def _use_opencl(self, session: BoardSession) -> None:
        try:
            session.call("OpenCL", session.function("use_opencl"), _FIRST_DEVICE)
        except (DeviceTimeoutError, DeviceUnreachableError, SessionEndedError):
            raise
        except DeviceError as err:
            raise _UnfitError(err.found, device=session.name, step="OpenCL") from err

    @property
    def _board(self) -> BoardSession:
        assert self._session is not None
        return self._session

    def _set_threads(self, threads: int) -> None:
        if threads == self._threads_now:
            return
        configure = self._board.function("configure_threads")
        found = json.loads(self._board.call("threads", configure, threads, self._cpus))
        if int(found["threads"]) != threads:
            raise DeviceError(
                f"{threads} threads were asked for, it offers {found['threads']}; give --threads",
                device=self._board.name,
                step="threads",
            )
        self._threads_now = threads

    # -- requests ------------------------------------------------------------------------------

    def _prepare(self, workload: dict[str, Any]) -> None:
        key = canonical(workload)
        if key == self._key:
            return
        self._forget_tensors()
        self._workload = workload_from(workload)
        self._operands = make_operands(self._workload, self._seed)
        self._expected = reference(self._workload, self._operands)
        self._key = key

    def _carry_out(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["op"] == "facts":
            facts = _facts(self._board)
            return {"facts": facts.to_dict(), "board": self._board.name, "gpu": self._gpu_name()}
        if not self._uses_opencl:
            self._set_threads(request["threads"])
        if request["op"] == "contest":
            return {"times_ms": self._contest(request)}
        kernel = self._load(request)
        try:
            return (
                self._count(kernel)
                if self._cost == "instructions"
                else self._time(kernel, request.get("best_ms"))
            )
        finally:
            kernel.forget()

    def _gpu_name(self) -> str | None:
        found = self._board.opencl_facts() if self._uses_opencl else None
        return found.devices[_FIRST_DEVICE].name if found and found.devices else None

    def _count(self, kernel: _BoardKernel) -> dict[str, Any]:
        kernel.spoil()
        counts, runs = kernel.count()
        return {
            "counts": counts,
            "repeats": runs,
            "is_tight": True,
            "error_max": largest_error(kernel.output(), self._expected),
        }

    def _time(self, kernel: _BoardKernel, best_ms: float | None) -> dict[str, Any]:
        best_ns = best_ms * 1e6 if best_ms else math.inf
        error = kernel.check(self._expected)
        for attempt in range(_COOLINGS + 1):
            before = _facts(self._board)
            values, tight = kernel.sample(best_ns)
            after = _facts(self._board)
            slower = throttling(before, after)
            if not slower or attempt == _COOLINGS:
                break
            logger.info("%s: %s; it rests", self._board.name, slower[0])
            time.sleep(self._rest_s)
        # Once more: a race between threads need not show the first time.
        error = max(error, kernel.check(self._expected))
        return {
            "cost_ms": typical(values) / 1e6,
            "repeats": len(values) * kernel.batch,
            "is_tight": tight,
            "error_max": error,
            "clock_mhz": after.clock_mhz,
            "temperature_c": after.temperature_c,
            "throttled": slower[0] if slower else "",
        }

    def _contest(self, request: Mapping[str, Any]) -> list[list[float]]:
        kernels = [self._load(entry) for entry in request["entries"]]
        try:
            return take_turns(
                kernels, self._expected, rounds=request["rounds"], seed=request["seed"]
            )
        finally:
            for kernel in kernels:
                kernel.forget()

    # -- loading -------------------------------------------------------------------------------

    def _load(self, entry: Mapping[str, Any]) -> _BoardKernel:
        session = self._board
        self._number += 1
        name = f"kernel-{self._number}.so"
        library = bytearray(base64.b64decode(entry["library"]))
        session.call("upload", session.remote.upload, library, name)
        module = session.call("load", session.remote.load_module, name)
        steps = calls(self._workload, plan_from(entry["plan"]), self._operands)
        weights: dict[tuple[int, int], Array] = {
            (position, index): array
            for position, call in enumerate(steps)
            for index in sorted(call.weights)
            if (array := call.inputs[index]) is not None
        }
        tensors: list[Any] = []

        def add(tensor: Any) -> int:
            tensors.append(tensor)
            return len(tensors) - 1

        outputs = [add(self._empty(call.shape, call.dtype)) for call in steps]
        arguments: dict[tuple[int, int], int] = {}
        for position, call in enumerate(steps):
            for index, array in enumerate(call.inputs):
                is_between = array is None
                arguments[position, index] = (
                    outputs[position - 1] if is_between else add(self._upload(array))
                )
        variants = [arguments]
        weight_bytes = sum(array.nbytes for array in weights.values())
        for _ in range(self._copies(weight_bytes) - 1):
            copies = {
                place: add(self._copy(tensors[arguments[place]], array))
                for place, array in weights.items()
            }
            variants.append(arguments | copies)
        program = "\n".join(
            "".join(
                f"{call.symbol} "
                + " ".join(str(variant[position, index]) for index in range(len(call.inputs)))
                + f" {outputs[position]}\n"
                for position, call in enumerate(steps)
            )
            for variant in variants
        )
        nothing = [spoilt(call.shape, None) for call in steps[:-1]]
        nothing.append(spoilt(steps[-1].shape, self._expected))
        spoils = [self._upload(array) for array in nothing]
        return _BoardKernel(session, module, name, program, tensors, outputs, spoils)

    def _copies(self, weight_bytes: int) -> int:
        if self._cost == "instructions" or not self._cold_bytes or not weight_bytes:
            return 1
        return min(_MOST_COPIES, max(2, math.ceil(self._cold_bytes / weight_bytes)))

    def _empty(self, shape: Sequence[int], dtype: str) -> Any:
        from tvm_mobilenet._tvm import tvm

        session = self._board
        remote = session.remote
        place = remote.cl(_FIRST_DEVICE) if self._uses_opencl else remote.cpu(0)
        return session.call("upload", tvm.runtime.empty, tuple(shape), dtype, place)

    def _forget_tensors(self) -> None:
        self._tensors.clear()
        self._kept_bytes = 0

    def _upload(self, array: Any) -> Any:
        """Bring an array to the board, once for all candidates of a workload."""
        array = np.ascontiguousarray(array)
        key = blake2b(
            array.tobytes(), salt=repr(array.shape).encode()[:16], person=str(array.dtype).encode()
        ).digest()
        if key not in self._tensors:
            if self._kept_bytes > _KEPT_BYTES:
                self._forget_tensors()
            self._kept_bytes += array.nbytes
            tensor = self._empty(array.shape, str(array.dtype))
            self._board.call("upload", tensor.copyfrom, array)
            self._tensors[key] = tensor
        return self._tensors[key]

    def _copy(self, tensor: Any, array: Any) -> Any:
        """Copy a tensor on the board itself: nothing goes over the network."""
        copy = self._empty(array.shape, str(array.dtype))
        self._board.call("upload", tensor.copyto, copy)
        return copy


@dataclass
class _BoardKernel:
    session: BoardSession
    module: Any
    file_name: str
    program: str
    """See native/board_agent/kernels.h."""
    tensors: list[Any]
    outputs: list[int]
    """Which of the tensors are written, the last one last."""
    spoilt: list[Any]
    """What the outputs are before a check."""
    batch: int = 0
    """Runs that are timed as one; 0 while it is not chosen."""
    single_ns: float = 0.0

    def forget(self) -> None:
        """Remove the library's file; the tensors go when they are collected."""
        self._quietly(lambda: self.session.remote.remove(self.file_name))

    def _quietly(self, function: Callable[[], Any]) -> None:
        try:
            self.session.call("forget", function)
        except DeviceError as err:
            logger.debug("%s: %s", self.file_name, err)

    def spoil(self) -> None:
        """Overwrite all that the kernel is to write."""
        for number, nothing in zip(self.outputs, self.spoilt, strict=True):
            self.session.call("run", nothing.copyto, self.tensors[number])

    def output(self) -> Array:
        """Fetch what the kernel wrote."""
        tensor = self.tensors[self.outputs[-1]]
        return self.session.call("fetch", lambda: np.asarray(tensor.numpy()))

    def check(self, expected: Array) -> float:
        """Compute once over a spoiled output and return the largest difference.

        Raises:
            WrongResultError: it is beyond the tolerance.
        """
        self.spoil()
        self._times(1, 1)
        return largest_error(self.output(), expected)

    def count(self) -> tuple[dict[str, int], int]:
        """Return what one run retires, by class, and how many runs it took to be sure."""
        function = self.session.function("count_calls")
        text = self.session.call("run", function, self.module, self.program, *self.tensors)
        found = json.loads(text)
        return dict(zip(found["classes"], map(int, found["counts"]), strict=True)), found["runs"]

    def sample(self, best_ns: float) -> tuple[list[float], bool]:
        """Time runs until they agree; returns nanoseconds a run, and whether they do."""
        self._choose_batch()
        values: list[float] = []
        spent = 0.0
        while spent < MOST_NS:
            chunk = self._times(self.batch, self._repeat(LEAST_NS))
            values += chunk
            spent += sum(chunk) * self.batch
            if len(values) >= 4 and min(values) > HOPELESS * best_ns:
                return values, False
            if spent >= LEAST_NS and is_tight(values):
                return values, True
        return values, is_tight(values)

    def burst(self) -> list[float]:
        """Time runs for one turn of a contest, after one that brings the caches back."""
        if not self.batch:
            self._choose_batch()
        return self._times(self.batch, max(3, self._repeat(BURST_NS)) + 1)[1:]

    def _choose_batch(self) -> None:
        self.single_ns = max(1.0, min(self._times(1, 4)[1:]))
        self.batch = max(1, math.ceil(BATCH_NS / self.single_ns))

    def _repeat(self, duration_ns: float) -> int:
        return max(1, min(_MOST_RUNS, math.ceil(duration_ns / (self.single_ns * self.batch))))

    def _times(self, batch: int, repeat: int) -> list[float]:
        function = self.session.function("time_calls")
        raw = self.session.call(
            "run", function, self.module, self.program, batch, repeat, *self.tensors
        )
        return [float(value) / batch for value in np.frombuffer(bytes(raw), "<i8")]


def _facts(session: BoardSession) -> BoardFacts:
    return BoardFacts.of(json.loads(session.call("facts", session.function("facts"))))
