"""Kernels written by hand: arguments, launches, and what is refused."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tvm

from tests.opencl.modules import (
    BOOL,
    BUFFER,
    FLOAT16,
    FLOAT32,
    INT8,
    INT32,
    INT64,
    UINT8,
    UINT32,
    Kernel,
    buffer,
    load,
    make,
    module_bytes,
)

pytestmark = pytest.mark.opencl

SCALE = """// Function: scale
__kernel void scale(__global float* x, float factor, int n) {
  int i = get_global_id(0);
  if (i < n) x[i] *= factor;
}
"""
SCALE_KERNEL = Kernel((BUFFER, FLOAT32, INT32))


def test_a_kernel_computes(device):
    x = tvm.runtime.tensor(np.arange(10, dtype="float32"), device)
    make(SCALE, scale=SCALE_KERNEL)["scale"](buffer(x), 2.5, 10, 3, 4)
    assert np.array_equal(x.numpy(), 2.5 * np.arange(10))


def test_every_type_of_scalar_arrives(device):
    source = """// Function: scalars
    __kernel void scalars(__global float* y, char a, uchar b, int c, uint d, long e, float f) {
      y[0] = a; y[1] = b; y[2] = c; y[3] = d; y[4] = e; y[5] = f;
    }
    """
    y = tvm.runtime.tensor(np.zeros(6, "float32"), device)
    types = (BUFFER, INT8, UINT8, INT32, UINT32, INT64, FLOAT32)
    values = (-100, 200, -100000, 4000000000, -(1 << 40), 0.25)
    make(source, scalars=Kernel(types))["scalars"](buffer(y), *values, 1, 1)
    assert np.array_equal(y.numpy(), np.array(values, "float32"))


def test_a_half_scalar_arrives_rounded_to_even(device):
    source = """// Function: half_bits
    __kernel void half_bits(__global ushort* y, ushort a) { y[0] = a; }
    """
    kernel = make(source, half_bits=Kernel((BUFFER, FLOAT16)))["half_bits"]
    y = tvm.runtime.tensor(np.zeros(1, "uint16"), device)
    for value in (0.0, 1.0, -2.5, 65504.0, 1e9, 6e-8, 1 / 3, 2049.0):
        kernel(buffer(y), value, 1, 1)
        with np.errstate(over="ignore"):
            assert y.numpy()[0] == np.float16(value).view("uint16"), value


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 0, 3, 1, 4, 2)])
def test_launch_sizes_come_in_the_order_of_the_tags(device, order):
    source = """// Function: where
    __kernel void where(__global int* y) {
      int at = (get_global_id(2) * get_global_size(1) + get_global_id(1)) * get_global_size(0)
               + get_global_id(0);
      y[at] = get_local_size(0) + 10 * get_local_size(1) + 100 * get_local_size(2);
    }
    """
    tags = [f"{kind}.{axis}" for kind in ("blockIdx", "threadIdx") for axis in "xyz"]
    sizes = (2, 3, 1, 4, 1, 2)
    kernel = make(source, where=Kernel((BUFFER,), [tags[i] for i in order]))["where"]
    y = tvm.runtime.tensor(np.zeros(48, "int32"), device)
    kernel(buffer(y), *(sizes[i] for i in order))
    assert np.array_equal(y.numpy(), np.full(48, 214))


def test_a_launch_of_nothing_does_nothing(device):
    x = tvm.runtime.tensor(np.ones(4, "float32"), device)
    make(SCALE, scale=SCALE_KERNEL)["scale"](buffer(x), 2.0, 4, 0, 4)
    assert np.array_equal(x.numpy(), np.ones(4))


def test_several_threads_launch_one_kernel(device):
    kernel = make(SCALE, scale=SCALE_KERNEL)["scale"]
    tensors = [tvm.runtime.tensor(np.ones(64, "float32"), device) for _ in range(4)]

    def work(index: int) -> None:
        for _ in range(50):
            kernel(buffer(tensors[index]), 1.0 if index % 2 else -1.0, 64, 16, 4)
            kernel(buffer(tensors[index]), float(index + 1), 64, 16, 4)
            kernel(buffer(tensors[index]), 1.0 / (index + 1), 64, 16, 4)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tensor in tensors:
        np.testing.assert_allclose(tensor.numpy(), np.ones(64), rtol=1e-5)


def test_a_function_outlives_its_module(device):
    module = make(SCALE, scale=SCALE_KERNEL)
    kernel = module["scale"]
    del module
    x = tvm.runtime.tensor(np.ones(4, "float32"), device)
    kernel(buffer(x), 3.0, 4, 1, 4)
    assert np.array_equal(x.numpy(), np.full(4, 3))


def test_build_all_counts_the_kernels(device):
    twice = SCALE + SCALE.replace("scale", "again")
    module = make(twice, scale=SCALE_KERNEL, again=SCALE_KERNEL)
    assert module["tvm_mobilenet.opencl.build_all"](0) == 2


def test_a_module_is_saved_as_it_was_read(device):
    data = module_bytes(SCALE, {"scale": SCALE_KERNEL})
    module = load(data)
    assert module.kind == "opencl"
    assert module.inspect_source() == SCALE
    save = tvm.get_global_func("ffi.ModuleSaveToBytes", allow_missing=True)
    if save is not None:
        assert bytes(save(module)) == data


# -- refused -----------------------------------------------------------------------------------


def still_works(device) -> None:
    x = tvm.runtime.tensor(np.ones(4, "float32"), device)
    make(SCALE, scale=SCALE_KERNEL)["scale"](buffer(x), 3.0, 4, 1, 4)
    assert np.array_equal(x.numpy(), np.full(4, 3))


def test_a_source_that_does_not_compile(device):
    broken = "// Function: broken\n__kernel void broken(__global float* x) { x[0] = nonsense; }\n"
    module = make(broken, broken=Kernel((BUFFER,)))
    with pytest.raises(Exception, match=r"OpenCL: kernel broken cannot be built .*nonsense") as hit:
        module["tvm_mobilenet.opencl.build_all"](0)
    assert "CL_BUILD_PROGRAM_FAILURE" in str(hit.value)
    still_works(device)


def test_a_work_group_over_the_limit(device):
    kernel = make(SCALE, scale=SCALE_KERNEL)["scale"]
    x = tvm.runtime.tensor(np.ones(4, "float32"), device)
    limit = device.max_threads_per_block
    with pytest.raises(Exception, match=rf"kernel scale needs work-groups of {2 * limit}x1x1 ="):
        kernel(buffer(x), 2.0, 4, 1, 2 * limit)
    assert np.array_equal(x.numpy(), np.ones(4))
    still_works(device)


def test_local_memory_over_the_limit(device):
    source = f"""// Function: large
    __kernel void large(__global float* x) {{
      __local float stage[{device.max_shared_memory_per_block // 4 + 64}];
      stage[get_local_id(0)] = x[0];
      barrier(CLK_LOCAL_MEM_FENCE);
      x[0] = stage[0];
    }}
    """
    module = make(source, large=Kernel((BUFFER,)))
    with pytest.raises(Exception, match=r"OpenCL: kernel large"):
        module["tvm_mobilenet.opencl.build_all"](0)
    still_works(device)


def test_half_on_a_device_without_it(device):
    from tvm_mobilenet.opencl.runtime import describe

    if describe().devices[0].float16:
        pytest.skip("this device has half precision")
    source = """// Function: halves
    #pragma OPENCL EXTENSION cl_khr_fp16 : enable
    __kernel void halves(__global half* x) { x[0] = x[1]; }
    """
    module = make(source, halves=Kernel((BUFFER,)))
    with pytest.raises(Exception, match=r"kernel halves computes in float16, .* compile the model"):
        module["tvm_mobilenet.opencl.build_all"](0)
    still_works(device)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Kernel((BUFFER, BOOL)), "argument 1 is bool8, which no OpenCL kernel can take"),
        (Kernel((BUFFER, (0, 32, 4))), "argument 1 is int32x4"),
        (Kernel((BUFFER, (0, 4, 1))), "argument 1 is int4"),
        (Kernel((BUFFER,), ["clusterCtaIdx.x"]), "launched with clusterCtaIdx.x"),
        (Kernel((BUFFER,), ["tirx.use_dyn_shared_memory"]), "use_dyn_shared_memory"),
    ],
)
def test_a_call_that_opencl_does_not_have(device, kernel: Kernel, reason: str):
    with pytest.raises(Exception, match=reason):
        make(SCALE, scale=kernel)
    still_works(device)


def test_wrong_arguments_of_a_call(device):
    kernel = make(SCALE, scale=SCALE_KERNEL)["scale"]
    x = tvm.runtime.tensor(np.ones(4, "float32"), device)
    with pytest.raises(Exception, match="takes 5 values, 4 were given"):
        kernel(buffer(x), 2.0, 4, 1)
    with pytest.raises(Exception, match="argument 0 is no buffer"):
        kernel(None, 2.0, 4, 1, 4)
    with pytest.raises(Exception, match=r"blockIdx.x is -1"):
        kernel(buffer(x), 2.0, 4, -1, 4)
    still_works(device)


def test_bytes_of_another_version(device):
    data = module_bytes(SCALE, {"scale": SCALE_KERNEL})
    with pytest.raises(Exception, match=r"4 bytes are left over\); it was made with another"):
        load(data + b"more")
    for size in range(0, len(data), 7):
        with pytest.raises(Exception, match="it ends too early"):
            load(data[:size])
    with pytest.raises(Exception, match="module of format aocx cannot be run"):
        load(module_bytes(SCALE, {"scale": SCALE_KERNEL}, "aocx"))
    with pytest.raises(Exception, match="source of kernel other is not in the library"):
        load(module_bytes(SCALE, {"other": SCALE_KERNEL}))
    still_works(device)
