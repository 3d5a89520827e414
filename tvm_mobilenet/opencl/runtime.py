"""Loading the OpenCL runtime into this process, and asking it what there is.

TVM calls `autoload` when it is imported, through the entry point in the group `tvm.backends`: a
runtime that has been built is then there for every TVM program, an RPC server among them. Nothing
is built at that moment; `ensure_runtime` does that, for whoever is about to use OpenCL.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from pathlib import Path
from typing import Any

from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.opencl.building import built_for_this_machine, opencl_runtime
from tvm_mobilenet.opencl.facts import OpenCLDevice, OpenCLFacts

__all__ = [
    "DESCRIBE",
    "autoload",
    "describe",
    "device_error",
    "ensure_runtime",
    "is_opencl_error",
    "local_device",
]

logger = logging.getLogger(__name__)

_ERROR_MARK = "OpenCL: "  # native/opencl_runtime/opencl_api.h, OPENCL_RUNTIME_FAIL
_API = "device_api.opencl"
DESCRIBE = "tvm_mobilenet.opencl.describe"
"""TVM's global function that tells what there is, as JSON."""


def autoload() -> None:
    """Load the runtime if it has been built for this machine; never raises.

    A missing or failing OpenCL must not cost anybody TVM itself.
    """
    try:
        if importlib.util.find_spec("tvm_ffi") is not None:
            path = built_for_this_machine()
            if path is not None and not _is_registered():
                _load(path)
    except Exception as err:
        logger.debug("the OpenCL runtime was not loaded: %s", err)


def ensure_runtime() -> None:
    """See to it that this process has an OpenCL runtime; the first time, build it.

    A runtime that TVM has brought itself, or that somebody else has loaded, is left in charge.

    Raises:
        ToolchainError: it cannot be built here.
        DeviceError: it cannot be loaded.
    """
    import tvm  # noqa: F401  # its libraries have to be there before ours

    if _is_registered():
        return
    path = opencl_runtime()
    try:
        _load(path)
    except OSError as err:
        raise DeviceError(f"the OpenCL runtime {path} cannot be loaded: {err}") from err


def describe() -> OpenCLFacts:
    """Return what OpenCL finds on this machine.

    Raises:
        ToolchainError, DeviceError: as `ensure_runtime` does.
    """
    ensure_runtime()
    import tvm_ffi

    function = tvm_ffi.get_global_func(DESCRIBE, allow_missing=True)
    if function is None:  # TVM's own: it tells less
        return OpenCLFacts(library="TVM's own runtime", devices=_stock_devices())
    return OpenCLFacts.of_json(function())


def local_device(index: int = 0) -> Any:
    """Return TVM's device object for an OpenCL device of this machine.

    Raises:
        DeviceError: there is no such device; says why, and what to do.
        ToolchainError: the runtime cannot be built here.
    """
    facts = describe()
    if index >= len(facts.devices):
        raise DeviceError(facts.reason or f"there is no OpenCL device {index}", step="OpenCL")
    import tvm

    return tvm.opencl(index)


def device_error(
    err: BaseException, *, device: str | None = None, step: str | None = None
) -> DeviceError | None:
    """Return an error of the OpenCL runtime as ours, on one line; None if it is not one.

    It may have come from a board: TVM then wraps the text in its own.
    """
    text = str(err)
    at = text.find(_ERROR_MARK)
    if at < 0:
        return None
    return DeviceError(text[at:].split("\n", 1)[0].strip(), device=device, step=step)


def is_opencl_error(err: BaseException) -> bool:
    """Tell whether an error is one of the OpenCL runtime's, here or on a board."""
    return _ERROR_MARK in str(err)


def _is_registered() -> bool:
    import tvm_ffi

    return tvm_ffi.get_global_func(_API, allow_missing=True) is not None


def _load(path: Path) -> None:
    ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    logger.debug("loaded %s", path)


def _stock_devices() -> tuple[OpenCLDevice, ...]:
    import tvm

    found: list[OpenCLDevice] = []
    while (device := tvm.opencl(len(found))).exist:
        found.append(
            OpenCLDevice(
                name=str(device.device_name),
                compute_units=int(device.multi_processor_count),
                max_group_size=int(device.max_threads_per_block),
                local_memory_bytes=int(device.max_shared_memory_per_block),
            )
        )
    return tuple(found)
