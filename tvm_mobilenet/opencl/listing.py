"""Which OpenCL devices this machine has, asked in a process of its own.

A driver may crash or hang at the first question, starts threads, and one that computes on the
processor brings a compiler along: a list is not worth that in the process that asks for it.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.opencl.building import opencl_runtime
from tvm_mobilenet.opencl.facts import OpenCLFacts

__all__ = ["list_opencl_devices"]

_TIMEOUT_S = 60.0


def list_opencl_devices(timeout_s: float = _TIMEOUT_S) -> OpenCLFacts:
    """Return this machine's OpenCL devices, in the order in which they are numbered.

    Raises:
        ToolchainError: the OpenCL runtime cannot be built here.
        DeviceError: a driver crashed, or did not answer in time.
    """
    opencl_runtime()  # built here: its time is not the driver's
    command = [sys.executable, "-m", "tvm_mobilenet.opencl.listing"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise DeviceError(
            f"a driver did not say within {timeout_s:g} s which devices there are; try the drivers "
            "in /etc/OpenCL/vendors one by one",
            step="OpenCL",
        ) from err
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DeviceError(
            f"a driver ended the process that asked which devices there are (code "
            f"{done.returncode}): {last}",
            step="OpenCL",
        )
    return OpenCLFacts.of_json(done.stdout.splitlines()[-1])


def _main() -> None:
    # tvm_ffi imports torch where there is one; nothing here needs its three seconds.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from tvm_mobilenet.opencl.runtime import describe

    print(json.dumps(describe().to_dict()))


if __name__ == "__main__":
    _main()
