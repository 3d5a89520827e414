"""Several devices at once, another vendor's driver, and memory that is copied, not mapped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.opencl.drivers import intel_driver, run_python, run_suites, vendors

pytestmark = pytest.mark.opencl

needs_intel = pytest.mark.skipif(
    intel_driver() is None, reason="Intel's driver is not installed here; see `make opencl-intel`"
)

SEVERAL = """
import threading
import numpy as np
import tvm
from tests.opencl.modules import BUFFER, FLOAT32, INT32, Kernel, buffer, make
from tvm_mobilenet.opencl.runtime import describe

count = len(describe().devices)
assert count >= 2, describe()
devices = [tvm.opencl(index) for index in range(count)]
assert not tvm.opencl(count).exist
source = '''// Function: scale
__kernel void scale(__global float* x, float factor, int n) {
  int i = get_global_id(0);
  if (i < n) x[i] *= factor;
}
'''
module = make(source, scale=Kernel((BUFFER, FLOAT32, INT32)))
scale = module["scale"]

# A tensor goes from one device to the next, and comes back.
values = np.arange(1000, dtype="float32")
there = tvm.runtime.tensor(values, devices[0])
for device in devices[1:]:
    there = there.copyto(device)
assert np.array_equal(there.numpy(), values)

# Each thread has a device of its own, and launches the same kernel there.
failures = []

def work(device):
    try:
        x = tvm.runtime.tensor(np.ones(64, "float32"), device)
        assert module["tvm_mobilenet.opencl.build_all"](device.index) == 1
        for _ in range(20):
            x.copyto(x)
        assert np.array_equal(x.numpy(), np.ones(64))
    except Exception as err:
        failures.append(err)

threads = [threading.Thread(target=work, args=(device,)) for device in devices for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failures, failures

# A kernel runs on the thread's device, the first one; memory of another is refused.
first = tvm.runtime.tensor(np.ones(8, "float32"), devices[0])
scale(buffer(first), 3.0, 8, 1, 8)
assert np.array_equal(first.numpy(), np.full(8, 3))
second = tvm.runtime.tensor(np.ones(8, "float32"), devices[1])
try:
    scale(buffer(second), 3.0, 8, 1, 8)
except Exception as err:
    assert "runs on device 0, argument 0 lies on device 1" in str(err), err
else:
    raise AssertionError("it was taken")
assert np.array_equal(second.numpy(), np.ones(8))
print(count, "devices")
"""

EACH_COMPUTES = """
import numpy as np
import tvm
from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.opencl.runtime import describe
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.mali import families
from tvm_mobilenet.schedule.workload import Epilogue, MatmulWorkload
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tuning.reference import make_operands, reference

target = load_target("opencl-generic")
epilogue = Epilogue(bias=True, low=0, high=6)
workload = MatmulWorkload(rows=51, depth=37, columns=29, epilogue=epilogue)
plan = families.compute_plan(workload, target.gpu)
operands = make_operands(workload)
function = families.write(workload, plan).with_attr("global_symbol", "main")
with lowering():
    built = tvm.compile(IRModule({"main": function}), target=target.tvm_target())
wanted = reference(workload, operands)
for index, found in enumerate(describe().devices):
    device = tvm.opencl(index)
    inputs = [operands.x, families.pack(operands.weights, plan), operands.bias]
    arguments = [tvm.runtime.tensor(np.ascontiguousarray(a), device) for a in inputs]
    y = tvm.runtime.tensor(np.full(wanted.shape, np.nan, "float32"), device)
    built.mod["main"](*arguments, y)
    error = np.abs(y.numpy() - wanted).max()
    assert error <= 1e-5 * np.abs(wanted).max(), (index, error)
    print(found.name)
"""


@pytest.fixture
def two_of_pocl(device, tmp_path: Path) -> dict[str, str]:
    """An environment in which PoCL shows this processor twice."""
    from tvm_mobilenet.opencl.runtime import describe

    if describe().devices[0].platform != "Portable Computing Language":
        pytest.skip("PoCL is not this machine's first device")
    return {"POCL_DEVICES": "pthread basic"}


@pytest.mark.parametrize("code", [SEVERAL, EACH_COMPUTES], ids=["copies", "kernels"])
def test_several_devices_of_one_driver(two_of_pocl: dict[str, str], code: str):
    assert len(run_python(code, **two_of_pocl).splitlines()) >= 1


@needs_intel
@pytest.mark.parametrize("code", [SEVERAL, EACH_COMPUTES], ids=["copies", "kernels"])
def test_several_devices_of_two_vendors(device, tmp_path: Path, code: str):
    run_python(code, **vendors(tmp_path / "vendors", with_intel=True))


def test_memory_that_is_copied_and_not_mapped(device):
    assert "passed" in run_suites("memory", "timer", TVM_MOBILENET_OPENCL_MAP="0")


@needs_intel
@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("memory", "kernels", "timer", "program_cache"),
        ("schedules", "mixed"),
        ("half",),
        ("executors",),
    ],
    ids=lambda names: names[0],
)
def test_another_vendors_driver(tmp_path: Path, names: tuple[str, ...]):
    run_suites(*names, **vendors(tmp_path / "vendors", with_own=False, with_intel=True))
