from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import _logging_as_it_was, cli  # noqa: F401 - fixtures
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, MatmulWorkload
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tuning.recorded import tvm_version
from tvm_mobilenet.tuning.records import (
    WRITER_VERSION,
    Conditions,
    Plan,
    TrialRecord,
    plan_to_json,
    workload_to_json,
)
from tvm_mobilenet.tuning.space import Space

RELU6 = Epilogue(bias=True, low=0.0, high=6.0)
MATMUL = MatmulWorkload(rows=49, depth=16, columns=24, epilogue=RELU6)
DEPTHWISE = ConvWorkload(
    batch=1,
    height=7,
    width=7,
    in_channels=16,
    out_channels=16,
    kernel=(3, 3),
    padding=(1, 1, 1, 1),
    groups=16,
    epilogue=RELU6,
)


@pytest.fixture(scope="session")
def host() -> TargetSpec:
    return load_target("host")


def make_record(
    target: TargetSpec,
    *,
    family: str = "pointwise",
    workload: Any = MATMUL,
    plan: Plan | None = None,
    conditions: dict[str, Any] | None = None,
    **changes: Any,
) -> TrialRecord:
    """Return an accepted record of the computed plan, changed as told."""
    how = {
        "device": "a processor",
        "threads": target.cpu.cores,
        "governor": None,
        "cache": "cold",
        "repeats": 10,
        "is_tight": True,
        "is_emulated": False,
        "cost": "latency",
        "date": "2026-01-02T03:04:05+00:00",
        "tvm": tvm_version(),
        "tvm_mobilenet": "0.1.0",
    }
    values: dict[str, Any] = {
        "target": target.name,
        "fingerprint": target.fingerprint(),
        "family": family,
        "workload": workload_to_json(workload),
        "dtype": "float32",
        "layout": "NHWC",
        "writer": WRITER_VERSION,
        "plan": plan_to_json(plan or Space(workload, target.cpu).start),
        "verdict": "accepted",
        "cost": 0.5,
        "ratio": 0.9,
        "error": 1e-6,
        "conditions": Conditions.model_validate(how | (conditions or {})),
    }
    return TrialRecord(**(values | changes))


def c_library(folder: Path, body: str) -> str:
    """Return a library, in base 64, whose kernel does what `body` says in C."""
    source, library = folder / "kernel.c", folder / "kernel.so"
    source.write_text(
        "#include <stdint.h>\n"
        "int __tvm_ffi_first(void *self, const void *args, int32_t count, void *result) {"
        + body
        + "}\n"
    )
    command = ["cc", "-O0", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return base64.b64encode(library.read_bytes()).decode()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 kB, or a skip where this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs permission to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
