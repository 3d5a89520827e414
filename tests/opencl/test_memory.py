"""Buffers and copies, through TVM's own interface."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tvm

pytestmark = pytest.mark.opencl

DTYPES = ("float32", "float16", "int8", "uint8", "int32", "uint32", "int64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_comes_back_as_it_was(device, dtype: str):
    array = np.arange(105).astype(dtype).reshape(3, 5, 7)
    assert np.array_equal(tvm.runtime.tensor(array, device).numpy(), array)


def test_a_view_is_copied_out_of_and_into_its_place(device):
    whole = tvm.runtime.tensor(np.arange(24, dtype="float32"), device)
    view = whole._create_view((2, 4), "float32", 40)
    assert np.array_equal(view.numpy(), np.arange(10, 18, dtype="float32").reshape(2, 4))
    view.copyfrom(np.full((2, 4), -1, "float32"))
    expected = np.arange(24, dtype="float32")
    expected[10:18] = -1
    assert np.array_equal(whole.numpy(), expected)


def test_a_copy_on_the_device(device):
    source = tvm.runtime.tensor(np.arange(16, dtype="int32"), device)
    sink = tvm.runtime.empty((16,), "int32", device)
    source.copyto(sink)
    assert np.array_equal(sink.numpy(), np.arange(16))


def test_a_copy_within_a_buffer_may_overlap(device):
    whole = tvm.runtime.tensor(np.arange(16, dtype="int32"), device)
    whole._create_view((12,), "int32", 0).copyto(whole._create_view((12,), "int32", 16))
    assert np.array_equal(whole.numpy(), [0, 1, 2, 3, *range(12)])


def test_a_tensor_of_no_elements(device):
    empty = tvm.runtime.tensor(np.zeros((0, 4), "float32"), device)
    assert empty.numpy().shape == (0, 4)


def test_too_much_is_refused_and_the_next_is_served(device):
    with pytest.raises(Exception, match=r"OpenCL: device .* has no memory for 1099511627776 bytes"):
        tvm.runtime.empty((1 << 40,), "int8", device)
    assert tvm.runtime.tensor(np.ones(4, "int8"), device).numpy().sum() == 4


def test_a_device_that_is_not_there_is_named(device):
    assert not tvm.opencl(99).exist
    with pytest.raises(Exception, match="OpenCL: there is no device 99; this machine has"):
        tvm.runtime.empty((4,), "int8", tvm.opencl(99))


def test_several_threads_copy_at_once(device):
    failures = []

    def work(seed: int) -> None:
        array = np.random.default_rng(seed).normal(size=5000).astype("float32")
        for _ in range(20):
            if not np.array_equal(tvm.runtime.tensor(array, device).numpy(), array):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_the_device_says_of_itself(device):
    assert device.exist
    assert device.max_threads_per_block >= 1
    assert device.warp_size == 1
    assert device.max_shared_memory_per_block >= 1024
    assert len(device.max_thread_dimensions) == 3
    assert device.device_name
    assert device.total_global_memory > 1 << 20
