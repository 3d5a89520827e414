"""`tvm-mobilenet devices`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_note, print_table, print_warning
from tvm_mobilenet.cli.options import AsJson, AuthKeyFile, TimeoutS

if TYPE_CHECKING:
    from tvm_mobilenet.rpc.devices import DeviceEntry


def devices(
    tracker: Annotated[
        str,
        typer.Option(
            "--tracker", metavar="HOST:PORT", help="The tracker to ask.", show_default=False
        ),
    ],
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """List the boards at a tracker: free or busy, since when, who holds them, how they are."""
    from tvm_mobilenet.rpc.devices import list_devices

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
            ("key", "address", "state", "since", "holder", "board", "cores", "clock", "heat"),
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
    )


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
