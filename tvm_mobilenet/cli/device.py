"""The options that choose a device, made into one."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.console import print_note
from tvm_mobilenet.errors import SpecError, UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.protocols import Device, Progress
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["DeviceOptions", "artifact_target", "parse_cpus"]

_SAY_S = 10.0
_MOST_CPUS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """What was given on the command line."""

    tracker: str | None
    key: str | None
    device: str | None
    emulated: bool
    auth_key_file: Path | None
    timeout_s: float | None

    @classmethod
    def none(cls) -> DeviceOptions:
        """Return what stands for this machine."""
        return cls(
            tracker=None, key=None, device=None, emulated=False, auth_key_file=None, timeout_s=None
        )

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: more than one device, or an option that is of no use without one.
        """
        chosen = {"--tracker": self.tracker, "--device": self.device, "--emulated": self.emulated}
        given = [option for option, value in chosen.items() if value]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} were given; they exclude each other")
        if given:
            return
        idle = {
            "--key": self.key,
            "--auth-key-file": self.auth_key_file,
            "--timeout-s": self.timeout_s,
        }
        for option, value in idle.items():
            if value is not None:
                raise UsageError(
                    f"{option} {value}: no board was named; give --tracker, --device or --emulated"
                )

    @contextlib.contextmanager
    def open(self, target: Callable[[], TargetSpec], progress: Progress) -> Iterator[Device | None]:
        """Hand out the device, or None for this machine.

        Args:
            target: what an emulated board has to stand for.
            progress: told while an emulated board is started.
        """
        self.check()
        if not self.tracker and not self.device and not self.emulated:
            yield None
            return
        from tvm_mobilenet.rpc.board_device import connect

        notify = _Waiting()
        if not self.emulated:
            yield connect(
                self.device,
                tracker=self.tracker,
                key=self.key,
                auth_key_file=self.auth_key_file,
                timeout_s=self.timeout_s,
                notify=notify,
            )
            return
        from tvm_mobilenet.boards.emulator import ensure_board

        progress.start("preparing the emulated board")
        with ensure_board(target()) as board:
            progress.done(f"{board.name} at {board.address}")
            yield connect(
                board.address,
                auth_key_file=board.auth_key_file,
                timeout_s=self.timeout_s,
                notify=notify,
            )


class _Waiting:
    """Says who holds the board: at once, and then now and then."""

    def __init__(self) -> None:
        self._said_at: float | None = None

    def __call__(self, found: str) -> None:
        now = time.monotonic()
        if self._said_at is None or now - self._said_at >= _SAY_S:
            self._said_at = now
            print_note(f"waiting for a board: {found}")


def artifact_target(path: Path) -> TargetSpec:
    """Return the target that an artifact was compiled for."""
    from tvm_mobilenet.artifact import open_artifact
    from tvm_mobilenet.targets import TargetSpec

    manifest = open_artifact(path, runnable=False).manifest
    return TargetSpec.model_validate(manifest.target.spec)


def parse_cpus(text: str | None) -> tuple[int, ...]:
    """Read a list of processors: numbers and ranges, separated by commas.

    Raises:
        SpecError: it is none, or names a processor twice.
    """
    if text is None:
        return ()
    cpus: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match is None:
            raise SpecError(f"cpus {text!r}: give numbers and ranges, as in 0,1 or 4-7")
        first, last = int(match[1]), int(match[2] or match[1])
        cpus.extend(range(first, last + 1))
    if not cpus or len(set(cpus)) != len(cpus) or len(cpus) > _MOST_CPUS:
        raise SpecError(f"cpus {text!r}: name every processor once, lower numbers first")
    return tuple(cpus)
