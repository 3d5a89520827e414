"""`tvm-mobilenet devices`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_note, print_table, print_warning
from tvm_mobilenet.cli.options import AsJson, AuthKeyFile, TimeoutS
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.rpc.devices import DeviceEntry


def devices(
    tracker: Annotated[
        str | None,
        typer.Option(
            "--tracker",
            metavar="HOST:PORT",
            help="The tracker to ask; without one, this machine's OpenCL devices are listed.",
            show_default=False,
        ),
    ] = None,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """List the boards at a tracker, or this machine's OpenCL devices.

    Of a board: free or busy, since when, who holds it, how it is, and its OpenCL devices.
    """
    from tvm_mobilenet.rpc.devices import list_devices

    if tracker is None:
        for name, given in (("--auth-key-file", auth_key_file), ("--timeout-s", timeout_s)):
            if given is not None:
                raise UsageError(f"{name} {given}: no tracker was named; give --tracker")
        _list_here(as_json=as_json)
        return
    found = list_devices(tracker, auth_key_file=auth_key_file, timeout_s=timeout_s)
    for device in found.devices:
        if device.problem:
            print_warning(device.problem)
    if as_json:
        print_json(found.to_dict())
        return
    if not found.devices:
        print_note(f"no board is registered at {found.tracker}")
    else:
        print_table(
            (
                "key",
                "address",
                "state",
                "since",
                "holder",
                "board",
                "cores",
                "clock",
                "heat",
                "OpenCL",
            ),
            [_row(device) for device in found.devices],
        )
    for one in found.waiting:
        print_note(f"waiting for {one.key}: {one.user}, for {_ago(one.since)}")


def _row(device: DeviceEntry) -> tuple[object, ...]:
    board, facts = device.board, device.facts
    clock = facts.clock_mhz if facts else None
    heat = facts.temperature_c if facts else None
    return (
        board.key,
        board.address,
        device.state,
        _ago(board.since) if board.since else "",
        device.holder,
        f"{facts.board or facts.cpu}{' (emulated)' if facts.emulated else ''}"
        if facts
        else "stock server",
        facts.cores if facts else None,
        f"{clock:.0f} MHz" if clock else "",
        f"{heat:.0f} C" if heat is not None else "",
        _opencl(device),
    )


def _opencl(device: DeviceEntry) -> str:
    if device.opencl is None:
        return ""
    return ", ".join(one.name for one in device.opencl.devices) or "no device"


def _list_here(*, as_json: bool) -> None:
    from tvm_mobilenet.opencl.listing import list_opencl_devices

    found = list_opencl_devices()
    if as_json:
        print_json(found.to_dict())
        return
    if found.reason is not None:
        print_note(f"no OpenCL device here: {found.reason}")
        return
    print_table(
        ("number", "name", "kind", "OpenCL", "driver", "units", "work-group", "memory", "float16"),
        [
            (
                number,
                one.name,
                one.kind,
                one.version,
                one.driver,
                one.compute_units,
                one.max_group_size,
                f"{one.global_memory_bytes >> 20} MiB{', shared' if one.unified_memory else ''}",
                "yes" if one.float16 else "no",
            )
            for number, one in enumerate(found.devices)
        ],
    )


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
