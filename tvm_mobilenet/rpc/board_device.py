"""A board as a device: what measure, verify and classify are handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.facts import BoardFacts, HostFacts, throttling
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.rpc.address import Address, parse_address
from tvm_mobilenet.rpc.auth import read_key_file
from tvm_mobilenet.rpc.board_executor import BoardExecutor
from tvm_mobilenet.rpc.deadline import Timeouts
from tvm_mobilenet.rpc.session import BoardSession, open_session
from tvm_mobilenet.series import BoardRecord, Series, SeriesRequest, take_steps

__all__ = ["DEFAULT_COOL_DOWN_S", "BoardDevice", "connect"]

DEFAULT_COOL_DOWN_S = 1.0
"""Between bursts: a small board without a fan warms up by some degrees in a few seconds of work."""
_BURST_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardDevice:
    """A board, or any one of those under a key; held only while something is open on it."""

    address: Address | None = None
    """The board's own, where no tracker is asked."""
    tracker: Address | None = None
    key: str | None = None
    auth_key: bytes | None = field(default=None, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    notify: Callable[[str], None] | None = None
    """Told who holds the board while one waits for it."""

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"{self.key}@{self.tracker}" if self.tracker else str(self.address)

    @property
    def machine(self) -> None:
        """Not known before a session is open: a key may stand for different boards."""
        return None

    def session(self) -> BoardSession:
        """Wait for the board and open a session; close it to free the board."""
        return open_session(
            address=self.address,
            tracker=self.tracker,
            key=self.key,
            auth_key=self.auth_key,
            timeouts=self.timeouts,
            notify=self.notify,
        )

    def facts(self) -> HostFacts:
        """Describe the board; a stock server leaves everything open."""
        import json

        session = self.session()
        try:
            if not session.has_agent:
                return BoardFacts().host_facts()
            text = session.call("facts", session.function("facts"))
            return BoardFacts.of(json.loads(text)).host_facts()
        finally:
            session.close()

    def open(
        self, artifact: Artifact, threads: int | None = None, cpus: Sequence[int] = ()
    ) -> BoardExecutor:
        """Wait for the board and load an artifact's library on it; see `BoardExecutor`."""
        return BoardExecutor(self.session(), artifact, threads, cpus)

    def take_series(self, artifact: Artifact, request: SeriesRequest) -> Series:
        """Time a series on the board, in bursts, each of them shorter than the time-out.

        Raises:
            DeviceError: the board has gone; or layers are to be timed and it runs no agent.
        """
        (inputs,) = seeded(artifact.manifest, 1)
        with self.open(artifact, request.threads, request.cpus) as executor:
            before = executor.facts_before
            if request.profile:
                executor.session.function("time_layers")  # now, rather than after the timing
            cool_down_s = request.cool_down_s
            if cool_down_s is None:
                is_emulated = before is not None and before.emulated
                cool_down_s = 0.0 if is_emulated else DEFAULT_COOL_DOWN_S
            steps = take_steps(
                executor,
                inputs,
                SeriesRequest(
                    threads=executor.threads,
                    warmup=request.warmup,
                    repeat=request.repeat,
                    profile=request.profile,
                    cool_down_s=cool_down_s,
                ),
                burst_s=min(_BURST_S, self.timeouts.step_s / 4),
            )
            after = executor.facts()
            record = BoardRecord(
                name=executor.session.name,
                address=str(executor.session.address),
                key=self.key if self.tracker else None,
                has_agent=executor.session.has_agent,
                threads=executor.threads,
                cpus=executor.cpus,
                cool_down_s=cool_down_s,
                before=before,
                after=after,
            )
        facts = before or BoardFacts()
        return Series(
            steps=steps,
            threads=record.threads,
            host=facts.host_facts(),
            tvm=facts.tvm or "unknown",
            board=record,
            warnings=tuple(_warnings(record)),
        )


def _warnings(record: BoardRecord) -> list[str]:
    if record.before is None or record.after is None:
        return [
            "the board runs a stock RPC server: its memory, clock and temperature are not known; "
            "run the board agent there"
        ]
    if record.before.emulated:
        return ["the board is emulated: the times are the emulator's, and say nothing of a board"]
    return throttling(record.before, record.after, record.cpus)


def connect(
    address: str | Address | None = None,
    *,
    tracker: str | Address | None = None,
    key: str | None = None,
    auth_key_file: Path | str | None = None,
    timeout_s: float | None = None,
    notify: Callable[[str], None] | None = None,
) -> BoardDevice:
    """Return a board as a device for `measure`, `verify` and `classify`; nothing is sent yet.

    Args:
        address: `HOST:PORT` of a board.
        tracker: `HOST:PORT` of a tracker, in its place; then `key` names the kind of board.
        key: see `tracker`; with `address`, the key that a stock server was started with.
        auth_key_file: holds the key that agent and tracker were started with.
        timeout_s: for each step: waiting for the board, an upload, a load, a run.
        notify: told who holds the board while one waits for it.

    Raises:
        UsageError: an address that is none, a key file that cannot be used, or both or none given.
    """
    if (address is None) == (tracker is None):
        given = "neither" if address is None else "both"
        raise UsageError(f"--device and --tracker: {given} were given; give one of the two")
    if tracker is not None and not key:
        raise UsageError(f"tracker {tracker}: of which boards? Give --key, as `devices` lists it")
    return BoardDevice(
        address=parse_address(address, "device") if address is not None else None,
        tracker=parse_address(tracker, "tracker") if tracker is not None else None,
        key=key,
        auth_key=read_key_file(auth_key_file) if auth_key_file is not None else None,
        timeouts=Timeouts.of(timeout_s),
        notify=notify,
    )
