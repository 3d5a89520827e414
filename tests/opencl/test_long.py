"""The runtime under sanitizers, and over ten thousand inferences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.process_memory import resident_bytes

pytestmark = [pytest.mark.opencl, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SANITIZERS = (
    "g++ -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
)


def shared_library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["memory", "kernels", "program_cache", "timer"])
def test_sanitizers_find_nothing(device, name: str):
    environment = {
        **os.environ,
        "TVM_MOBILENET_CXX": SANITIZERS,
        "LD_PRELOAD": " ".join(map(shared_library, ("libasan.so", "libubsan.so"))),
        # Python and the driver keep what they need to the end; leaks are looked for below.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command.append(str(ROOT / f"tests/opencl/test_{name}.py"))
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Sanitizer" not in done.stderr


def test_ten_thousand_inferences_leave_nothing_behind(colour: Artifact):
    (inputs,) = seeded(colour.manifest, 1)
    with LocalExecutor(colour, 1) as executor:
        for _ in range(1000):
            executor.run(inputs)
        before = resident_bytes()
        for _ in range(10000):
            executor.run(inputs)
        grown = resident_bytes() - before
    # One inference makes two buffers, a dozen launches and their arguments: a leak of 100 bytes in
    # each would show. The allocator's own rounding is below that.
    assert grown < 1 << 20
