"""Where a model's kernels run: on this machine's processor, or on an OpenCL device of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tvm_mobilenet.opencl.runtime import describe, local_device

if TYPE_CHECKING:
    from tvm_mobilenet.manifest import Manifest

__all__ = ["BUILD_ALL", "OpenCLPlacement", "Placement", "ProcessorPlacement", "needs_opencl"]

BUILD_ALL = "tvm_mobilenet.opencl.build_all"
"""A function of a library's OpenCL part; see `native/opencl_runtime/module.h`."""


def needs_opencl(manifest: Manifest) -> bool:
    """Tell whether a model's kernels run on an OpenCL device, whatever runs on the processor."""
    options = manifest.target.spec.get("tvm")
    return isinstance(options, dict) and options.get("kind") == "opencl"


class Placement(Protocol):
    """What an executor has to know of the place; used on the thread that computes."""

    def device(self) -> Any:
        """Return TVM's device for the virtual machine and the inputs."""

    def prepare(self, library: Any) -> None:
        """Get a loaded library ready to run, as far as that can be done beforehand."""

    def wait(self) -> None:
        """Return when everything that was asked for has been computed."""

    def time_ns(self, call: Callable[[], object]) -> int:
        """Make a call and return how long it computed."""


class ProcessorPlacement:
    """This machine's processor."""

    def device(self) -> Any:
        """Return TVM's device for it."""
        import tvm

        return tvm.cpu()

    def prepare(self, library: Any) -> None:
        """Do nothing: code for a processor is ready."""

    def wait(self) -> None:
        """Do nothing: a call returns when it has computed."""

    def time_ns(self, call: Callable[[], object]) -> int:
        """Time the call by the clock."""
        begin = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - begin


class OpenCLPlacement:
    """An OpenCL device of this machine.

    The device is looked for at once. A driver that computes on the processor makes its threads
    then, and they inherit where the calling thread may run: make this before a thread is pinned.

    Raises:
        DeviceError: there is no such device, or no OpenCL at all.
        ToolchainError: the runtime cannot be built here.
    """

    def __init__(self, index: int = 0) -> None:
        import tvm_ffi

        self._index = index
        self._device = local_device(index)
        self.name = describe().devices[index].name
        """What the driver calls it."""
        self._begin = tvm_ffi.get_global_func(
            "tvm_mobilenet.opencl.begin_recording", allow_missing=True
        )
        self._end = tvm_ffi.get_global_func(
            "tvm_mobilenet.opencl.end_recording", allow_missing=True
        )

    def device(self) -> Any:
        """Return TVM's device for it."""
        return self._device

    def prepare(self, library: Any) -> None:
        """Have the driver build every kernel, or find it in the cache."""
        if library.implements_function(BUILD_ALL, query_imports=True):
            library.get_function(BUILD_ALL, query_imports=True)(self._index)

    def wait(self) -> None:
        """Return when the device has done everything."""
        self._device.sync()

    def time_ns(self, call: Callable[[], object]) -> int:
        """Time the kernels of the call by the driver's profiling events.

        A call that launches none, such as one that runs on the processor in between, is timed by
        the clock; so is every call under a runtime that is not ours.
        """
        if self._begin is None or self._end is None:
            begin = time.perf_counter_ns()
            call()
            self.wait()
            return time.perf_counter_ns() - begin
        self._begin()
        try:
            call()
        finally:
            spent = self._end()
        return int(spent)
