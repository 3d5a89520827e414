"""`tvm-mobilenet doctor`."""

from __future__ import annotations

from tvm_mobilenet.cli.console import print_json, print_line, print_table, show_progress
from tvm_mobilenet.cli.options import (
    AsJson,
    AuthKeyFile,
    BoardKey,
    DeviceAddress,
    TimeoutS,
    TrackerAddress,
)


def doctor(
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """Find the broken link between this machine and a board, and say how to mend it.

    Tracker, key, a free board, session, agent, versions, upload, a kernel's result, OpenCL, clock.
    Ends with exit code 4 where one is broken.
    """
    from tvm_mobilenet.rpc.doctor import diagnose

    with show_progress() as progress:
        found = diagnose(
            device,
            tracker=tracker,
            key=key,
            auth_key_file=auth_key_file,
            timeout_s=timeout_s,
            progress=progress,
        )
    if as_json:
        print_json(found.to_dict())
    else:
        print_table(
            ("link", "", "found", "what to do"),
            [(check.name, check.state, check.found, check.fix) for check in found.checks],
        )
        if found.broken is None:
            print_line(f"{found.device} can be measured on")
    found.check()
