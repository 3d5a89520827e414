"""From the tracker to a kernel's result: which link of the chain to a board is broken?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tvm_mobilenet
from tvm_mobilenet.elf import host_machine, machine_name
from tvm_mobilenet.errors import DeviceError, TvmMobilenetError
from tvm_mobilenet.facts import BoardFacts
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.rpc.board_device import BoardDevice, connect
from tvm_mobilenet.rpc.one_kernel import EXTENT, FUNCTION, build_one_kernel, expected_values
from tvm_mobilenet.rpc.session import BoardSession
from tvm_mobilenet.rpc.tracker_client import TrackerState, tracker_state

__all__ = ["Check", "Diagnosis", "diagnose"]

_UPLOAD_BYTES = 1 << 20
_HOT_C = 75.0
_FILE = "doctor.bin"
_LIBRARY = "doctor.so"


@dataclass(frozen=True, slots=True)
class Check:
    """One link of the chain."""

    name: str
    """`tracker`, `key`, `free`, `session`, `agent`, `versions`, `upload`, `kernel`, `OpenCL`,
    `clock`."""
    state: str
    """`ok`; `note`, which harms figures but breaks nothing; `broken`; `not reached`."""
    found: str
    fix: str = ""
    """What to do, where there is something."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Every link, in order."""

    device: str
    checks: tuple[Check, ...]

    @property
    def broken(self) -> Check | None:
        """The first link that does not hold."""
        return next((check for check in self.checks if check.state == "broken"), None)

    def check(self) -> None:
        """Raise where a link is broken.

        Raises:
            DeviceError: what is broken, and the fix.
        """
        broken = self.broken
        if broken is not None:
            fix = f"; {broken.fix}" if broken.fix else ""
            raise DeviceError(f"{broken.found}{fix}", device=self.device, step=broken.name)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "device": self.device,
            "healthy": self.broken is None,
            "checks": [asdict(check) for check in self.checks],
        }


def diagnose(
    device: str | None = None,
    *,
    tracker: str | None = None,
    key: str | None = None,
    auth_key_file: Path | str | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Try everything that a measurement on a board needs, one link after the other.

    Args:
        device: `HOST:PORT` of a board.
        tracker: `HOST:PORT` of a tracker, in its place, with `key`.
        key: the kind of board.
        auth_key_file: holds the key that agent and tracker were started with.
        timeout_s: for each step.
        progress: told of every link.

    Returns:
        What was found; `Diagnosis.check` turns a broken link into an error.

    Raises:
        UsageError: the request itself is wrong.
    """
    board = connect(
        device, tracker=tracker, key=key, auth_key_file=auth_key_file, timeout_s=timeout_s
    )
    return _Doctor(board, progress or NoProgress()).examine()


class _Broken(Exception):
    """A check that failed in a way of its own."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.found, self.fix = found, fix


class _Doctor:
    """Goes through the links; the first that breaks leaves the others unreached."""

    def __init__(self, board: BoardDevice, progress: Progress) -> None:
        self._board = board
        self._progress = progress
        self._checks: list[Check] = []
        self._state: TrackerState | None = None
        self._session: BoardSession | None = None
        self._facts: BoardFacts | None = None

    def examine(self) -> Diagnosis:
        links: list[tuple[str, Callable[[], Check]]] = [
            ("session", self._open),
            ("agent", self._agent),
            ("versions", self._versions),
            ("upload", self._upload),
            ("kernel", self._kernel),
            ("OpenCL", self._opencl),
            ("clock", self._clock),
        ]
        if self._board.tracker is not None:
            links = [("tracker", self._tracker), ("key", self._key), ("free", self._free), *links]
        import tvm.rpc  # takes seconds, and is no part of what is timed below

        del tvm
        self._progress.start(f"examining {self._board.name}", len(links))
        try:
            for name, examine in links:
                self._checks.append(self._attempt(name, examine))
                self._progress.advance(1, name)
        finally:
            if self._session is not None:
                self._session.close()
            self._progress.done()
        return Diagnosis(self._board.name, tuple(self._checks))

    def _attempt(self, name: str, examine: Callable[[], Check]) -> Check:
        if any(check.state == "broken" for check in self._checks):
            return Check(name, "not reached", "")
        try:
            return examine()
        except _Broken as err:
            return Check(name, "broken", err.found, err.fix)
        except TvmMobilenetError as err:
            text = err.found if isinstance(err, DeviceError) else str(err)
            found, _, fix = text.rpartition("; ")
            return Check(name, "broken", found or fix, fix if found else "")

    def _tracker(self) -> Check:
        assert self._board.tracker is not None
        begin = time.perf_counter()
        self._state = tracker_state(
            self._board.tracker, auth_key=self._board.auth_key, timeouts=self._board.timeouts
        )
        took_ms = (time.perf_counter() - begin) * 1e3
        kind = f"tvm-mobilenet {self._state.version}" if self._state.version else "TVM's own"
        return Check(
            "tracker",
            "ok",
            f"{kind}, {len(self._state.boards)} boards, answered in {took_ms:.0f} ms",
        )

    def _key(self) -> Check:
        assert self._state is not None
        key = self._board.key or ""
        found = [board for board in self._state.boards if board.key == key]
        if not found:
            raise _Broken(
                self._state.say_holders(key),
                "start the board's agent with this --tracker and --key, or name another key",
            )
        return Check("key", "ok", f"{len(found)} registered under {key!r}")

    def _free(self) -> Check:
        assert self._state is not None
        key = self._board.key or ""
        free = self._state.free.get(key, 0)
        if free:
            return Check("free", "ok", f"{free} free")
        return Check(
            "free", "note", self._state.say_holders(key), "jobs wait in turn; this one does too"
        )

    def _open(self) -> Check:
        begin = time.perf_counter()
        self._session = self._board.session()
        took_ms = (time.perf_counter() - begin) * 1e3
        return Check("session", "ok", f"opened on {self._session.name} in {took_ms:.0f} ms")

    @property
    def _opened(self) -> BoardSession:
        assert self._session is not None
        return self._session

    def _agent(self) -> Check:
        session = self._opened
        if not session.has_agent:
            return Check(
                "agent",
                "note",
                "a stock RPC server: no layers, no memory, no clock, and a crash ends it",
                "run the board agent there (`tvm-mobilenet board bundle`)",
            )
        self._facts = BoardFacts.of(json.loads(session.call("facts", session.function("facts"))))
        facts = self._facts
        cores = f", {facts.cores} cores" if facts.cores else ""
        emulated = ", emulated" if facts.emulated else ""
        model = f"{facts.board}: " if facts.board else ""
        return Check("agent", "ok", f"{model}{facts.cpu}, {facts.machine}{cores}{emulated}")

    def _versions(self) -> Check:
        import tvm

        ours = str(tvm.__version__)
        if self._facts is None or self._facts.tvm is None:
            return Check("versions", "note", f"TVM {ours} here, not known there")
        theirs = self._facts.tvm
        if theirs != ours:
            raise _Broken(
                f"TVM {ours} here and {theirs} there: libraries may not load",
                f"make the archive again with tvm-mobilenet {tvm_mobilenet.__version__} "
                "(`tvm-mobilenet board bundle`) and start that",
            )
        return Check("versions", "ok", f"TVM {ours} on both sides")

    def _upload(self) -> Check:
        session = self._opened
        data = bytearray(np.random.default_rng(0).bytes(_UPLOAD_BYTES))
        begin = time.perf_counter()
        session.call("upload", session.remote.upload, data, _FILE)
        took_s = time.perf_counter() - begin
        back = session.call("download", session.remote.download, _FILE)
        session.call("remove", session.remote.remove, _FILE)
        if bytes(back) != bytes(data):
            raise _Broken(
                f"{len(data)} bytes went there, and others came back",
                "look at the board's memory and storage, and at the link",
            )
        rate = len(data) / took_s / 1e6
        return Check("upload", "ok", f"1 MiB there at {rate:.1f} MB/s, and back the same")

    def _kernel(self) -> Check:
        session = self._opened
        if self._facts is not None and self._facts.machine is not None:
            machine = machine_name(self._facts.machine)
        elif session.address.is_loopback:
            machine = host_machine()
        else:
            return Check("kernel", "note", "not tried: a stock server does not say what it runs on")
        library = bytearray(build_one_kernel(machine))
        session.call("upload", session.remote.upload, library, _LIBRARY)
        x = np.random.default_rng(1).standard_normal(EXTENT).astype(np.float32)
        found = session.call("run", _run_kernel, session.remote, x)
        error = float(np.abs(found - expected_values(x)).max())
        if not error < 1e-5:
            raise _Broken(
                f"a kernel of one line computes something else than numpy, by {error:.2g}",
                "look at the board's memory; is the emulator or the kernel patched?",
            )
        return Check("kernel", "ok", f"compiled for {machine}, run there, equal to numpy's result")

    def _opencl(self) -> Check:
        """Say which OpenCL devices the board offers; none is no fault."""
        facts = self._opened.opencl_facts()
        if facts is None:
            return Check(
                "OpenCL",
                "note",
                "not looked for: there is no OpenCL runtime on the board",
                "to use its GPU, make the archive for a target with one (`board bundle --target`)",
            )
        if not facts.devices:
            return Check("OpenCL", "note", facts.reason or "no device")
        return Check("OpenCL", "ok", "; ".join(map(str, facts.devices)))

    def _clock(self) -> Check:
        facts = self._facts
        if facts is None:
            return Check("clock", "note", "not known: a stock RPC server")
        if facts.emulated:
            return Check("clock", "note", "emulated: times mean nothing; count instructions")
        governors = ", ".join(facts.governors) or "no governor"
        clock = f"{facts.clock_mhz:.0f} MHz" if facts.clock_mhz else "clock not known"
        heat = f", {facts.temperature_c:.0f} C" if facts.temperature_c is not None else ""
        found = f"{governors}, {clock}{heat}"
        if facts.temperature_c is not None and facts.temperature_c >= _HOT_C:
            return Check("clock", "note", found, "cool the board before measuring")
        if facts.governors and facts.governors != ("performance",):
            return Check("clock", "note", found, "set the governor to performance for steady times")
        return Check("clock", "ok", found)


def _run_kernel(remote: Any, x: Any) -> Any:
    import tvm

    module = remote.load_module(_LIBRARY)
    device = remote.cpu(0)
    source = tvm.runtime.tensor(x, device)
    result = tvm.runtime.tensor(np.zeros_like(x), device)
    module[FUNCTION](source, result)
    return result.numpy()
