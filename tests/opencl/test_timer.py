"""Times by the driver's events."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tvm

from tests.opencl.modules import BUFFER, INT32, Kernel, buffer, make

pytestmark = pytest.mark.opencl

SPIN = """// Function: spin
__kernel void spin(__global float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum = sum * 0.5f + x[i & 63];
  x[get_global_id(0)] = sum;
}
"""


@pytest.fixture(scope="module")
def spin(device):
    x = tvm.runtime.tensor(np.ones(64, "float32"), device)
    kernel = make(SPIN, spin=Kernel((BUFFER, INT32)))["spin"]
    kernel(buffer(x), 1, 1, 64)

    def launch(n: int) -> None:
        kernel(buffer(x), n, 1, 64)

    return launch


def recorded_ns(*calls) -> int:
    tvm.get_global_func("tvm_mobilenet.opencl.begin_recording")()
    for call in calls:
        call()
    return tvm.get_global_func("tvm_mobilenet.opencl.end_recording")()


def test_a_longer_kernel_takes_longer(spin):
    short = min(recorded_ns(lambda: spin(1000)) for _ in range(5))
    long = min(recorded_ns(lambda: spin(100000)) for _ in range(5))
    assert 0 < short < long


def test_recordings_nest(spin):
    inner = []
    outer = recorded_ns(
        lambda: spin(100000), lambda: inner.append(recorded_ns(lambda: spin(100000)))
    )
    assert 0 < inner[0] < outer


def test_more_launches_than_are_kept_waiting(spin):
    few = recorded_ns(*[lambda: spin(10)] * 10)
    many = recorded_ns(*[lambda: spin(10)] * 3000)
    assert many > few > 0


def test_without_a_kernel_it_is_the_clock_that_tells(spin):
    assert recorded_ns(lambda: sum(range(100000))) > 0


def test_another_threads_launches_do_not_count(spin, device):
    x = tvm.runtime.tensor(np.ones(64, "float32"), device)
    kernel = make(SPIN, spin=Kernel((BUFFER, INT32)))["spin"]

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: kernel(buffer(x), 3000000, 1, 64))
        thread.start()
        thread.join()

    whole = recorded_ns(lambda: kernel(buffer(x), 3000000, 1, 64))
    assert recorded_ns(lambda: spin(10), elsewhere) < whole


def test_an_end_without_a_beginning(device):
    with pytest.raises(Exception, match="OpenCL: no recording was begun on this thread"):
        tvm.get_global_func("tvm_mobilenet.opencl.end_recording")()


def test_results_are_right_whichever_queue_computed_them(spin, device):
    """Times are taken on a queue of its own: what is computed before and after is ordered."""
    x = tvm.runtime.tensor(np.zeros(64, "float32"), device)
    source = """// Function: add
    __kernel void add(__global float* x) { x[get_global_id(0)] += 1; }
    """
    add = make(source, add=Kernel((BUFFER,)))["add"]
    for _ in range(50):
        add(buffer(x), 1, 64)
        recorded_ns(lambda: add(buffer(x), 1, 64))
        add(buffer(x), 1, 64)
    assert np.array_equal(x.numpy(), np.full(64, 150))
