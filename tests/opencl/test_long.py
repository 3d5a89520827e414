"""The runtime under sanitizers, and over ten thousand inferences."""

from __future__ import annotations

import subprocess

import pytest

from tests.opencl.drivers import run_suites
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.process_memory import resident_bytes

pytestmark = [pytest.mark.opencl, pytest.mark.slow]

SANITIZERS = (
    "g++ -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
)


def shared_library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["memory", "kernels", "program_cache", "timer"])
def test_sanitizers_find_nothing(device, name: str):
    said = run_suites(
        name,
        TVM_MOBILENET_CXX=SANITIZERS,
        LD_PRELOAD=" ".join(map(shared_library, ("libasan.so", "libubsan.so"))),
        # Python and the driver keep what they need to the end; leaks are looked for below.
        ASAN_OPTIONS="detect_leaks=0",
    )
    assert "Sanitizer" not in said


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
