"""Running a bundle's program before it is shipped: does it start, and what does it take?"""

from __future__ import annotations

import json
import logging
import math
import shlex
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_mobilenet.boards.sysroot import emulator_command
from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.errors import ArtifactError, DeviceError, SpecError
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.targets import TargetSpec

__all__ = ["Trial", "emulator", "try_bundle"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 300
_STARTS = 5
_ELEMENT_BYTES = {"bool": 1}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the sample program took for its first inference."""

    where: str
    """`this machine`, `emulated: qemu-aarch64 -cpu cortex-a72`, or why it was not tried."""
    is_emulated: bool = False
    start_ms: float | None = None
    """From starting the program to a model that is ready: the median of five. None where it was
    emulated or not tried."""
    peak_bytes: int | None = None
    """The program's largest resident memory over one inference; None where it was not tried. Where
    it was emulated, the emulator's own memory is in it."""
    threads: int | None = None


def emulator(target: TargetSpec, machine: str) -> list[str] | None:
    """Return the command that runs a program for `target` here, empty for none, None for no way."""
    if machine == host_machine():
        return []
    try:
        return emulator_command(target)
    except (DeviceError, SpecError) as err:
        logger.info("not tried: %s", err)
        return None


def try_bundle(root: Path, program: str, manifest: Manifest, target: TargetSpec) -> Trial:
    """Run the program of the bundle laid out in `root` on inputs of zeros.

    Raises:
        ArtifactError: it runs here and fails.
    """
    machine = manifest.library.machine
    runner = emulator(target, machine)
    if runner is None:
        return Trial(
            where=f"not tried: this machine is {host_machine()}, and there is no qemu-{machine} "
            f"with the C library of {machine} (Debian: qemu-user, libc6-arm64-cross, "
            "libstdc++6-arm64-cross)"
        )
    command = [*runner, str(root / program), str(root / "model")]
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-trial-") as scratch:
        zeros = [
            _zeros(info.shape, info.dtype, Path(scratch) / f"{index}.bin")
            for index, info in enumerate(manifest.inputs)
        ]
        result = _run([*command, "--stats", "--logits", "--raw", *zeros])
    if result.returncode == -signal.SIGILL and not runner:
        return Trial(where=f"not tried: this machine lacks instructions that {target.name} has")
    _check(result, command)
    stats = json.loads(result.stdout.splitlines()[0])
    return Trial(
        where=f"emulated: {Path(runner[0]).name} {' '.join(runner[1:3])}"
        if runner
        else "this machine",
        is_emulated=bool(runner),
        start_ms=None if runner else _start_ms(command),
        peak_bytes=stats["peak_bytes"],
        threads=stats["threads"],
    )


def _zeros(shape: Sequence[int], dtype: str, path: Path) -> str:
    digits = "".join(character for character in dtype if character.isdigit())
    size = _ELEMENT_BYTES.get(dtype) or int(digits) // 8
    path.write_bytes(bytes(math.prod(shape) * size))
    return str(path)


def _start_ms(command: Sequence[str]) -> float:
    """Time the program from its start to its first word, which comes once its model is open."""
    times: list[float] = []
    for _ in range(_STARTS):
        begin = time.perf_counter()
        with subprocess.Popen(
            [*command, "--describe"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            times.append((time.perf_counter() - begin) * 1e3)
            process.communicate(timeout=_TIMEOUT_S)
    return statistics.median(times)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as err:
        raise ArtifactError(
            f"trying {shlex.join(command[:2])}: it did not end within {_TIMEOUT_S} s; compile the "
            "model again, and report it if that does not help"
        ) from err


def _check(result: subprocess.CompletedProcess[str], command: Sequence[str]) -> None:
    if result.returncode != 0:
        said = " ".join(result.stderr.split())[-300:] or "it said nothing"
        raise ArtifactError(
            f"trying {shlex.join(command)}: it ended with {result.returncode}: {said}; compile the "
            "model again, and report it if that does not help"
        )
