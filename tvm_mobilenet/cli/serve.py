"""`tvm-mobilenet serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_line, show_progress
from tvm_mobilenet.cli.options import AuthKeyFile


def serve(
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="HOST", help="Where to listen; others' to reach only with a key."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 picks a free one.")
    ] = 9090,
    tracker: Annotated[
        str | None,
        typer.Option(
            "--tracker",
            metavar="HOST:PORT",
            help="Register there, under --key.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="NAME", help="What kind of board this is.", show_default=False
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            "--advertise",
            metavar="HOST",
            help="The address that the tracker tells clients. [default: the one it sees]",
            show_default=False,
        ),
    ] = None,
    auth_key_file: AuthKeyFile = None,
    session_timeout_s: Annotated[
        float,
        typer.Option("--session-timeout-s", metavar="S", min=1, help="The longest session."),
    ] = 600,
    memory_limit_mib: Annotated[
        int | None,
        typer.Option(
            "--memory-limit-mib",
            metavar="N",
            min=64,
            help="Of one session. [default: three quarters of this machine's]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve this machine as a board, by the agent that runs on boards.

    Whoever can use it runs code of his own here. It runs until Ctrl-C.
    """
    from tvm_mobilenet.rpc.serve import serve_board

    with show_progress() as progress:
        progress.start("building the agent")

        def ready(address: object) -> None:
            progress.done()
            print_line(f"board at {address}")

        serve_board(
            host,
            port,
            tracker=tracker,
            key=key,
            advertise=advertise,
            auth_key_file=auth_key_file,
            session_timeout_s=session_timeout_s,
            memory_limit_mib=memory_limit_mib,
            on_ready=ready,
        )
