"""`tvm-mobilenet tracker`."""

from __future__ import annotations

from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_line
from tvm_mobilenet.cli.options import AuthKeyFile


def tracker(
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="HOST", help="Where to listen; others' to reach only with a key."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 picks a free one.")
    ] = 9190,
    auth_key_file: AuthKeyFile = None,
) -> None:
    """Run a tracker, which lends boards to those who ask, in turn.

    Boards of ours and stock TVM RPC servers register by themselves, also after it was restarted. It
    runs until Ctrl-C.
    """
    from tvm_mobilenet.rpc.auth import read_key_file
    from tvm_mobilenet.rpc.tracker import run_tracker

    run_tracker(
        host,
        port,
        auth_key=read_key_file(auth_key_file) if auth_key_file else None,
        on_ready=lambda address: print_line(f"tracker at {address}"),
    )
