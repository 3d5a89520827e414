"""`tvm-mobilenet board`: what is copied to a board, and boards that are emulated here."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_note, print_table, show_progress
from tvm_mobilenet.cli.options import AsJson
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.boards.registry import Board

__all__ = ["board", "bundle", "list_", "start", "stop"]


def board() -> None:
    """Boards: what is copied to one, and boards that are emulated on this machine."""


def bundle(
    target: Annotated[
        str,
        typer.Option(
            "--target", metavar="NAME|FILE.toml", help="The board it is for.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.tar.gz", show_default=False)
    ],
    ssh: Annotated[
        str | None,
        typer.Option(
            "--ssh",
            metavar="USER@HOST",
            help="Copy it there, start it, and tunnel its port to this machine until Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    local_port: Annotated[
        int,
        typer.Option(
            "--local-port", min=0, max=65535, help="Where the tunnel begins; 0 picks a port."
        ),
    ] = 9090,
    as_json: AsJson = False,
) -> None:
    """Make the archive that is copied to a board: agent, runtime libraries, start script.

    Nothing but Linux's own libraries has to be on the board. With --ssh it is started there too.
    """
    from tvm_mobilenet.boards.archive import bundle_board
    from tvm_mobilenet.boards.ssh import SshBoard
    from tvm_mobilenet.targets import load_target

    with show_progress() as progress:
        progress.start(f"making the archive for {target}")
        made = bundle_board(load_target(target), output)
        progress.done(f"{made.size_bytes / 1e6:.1f} MB")
    if as_json:
        print_json(dataclasses.asdict(made))
    else:
        print_line(
            f"archive   {made.path}  {made.size_bytes / 1e6:.1f} MB, {len(made.files)} files"
        )
        print_line(f"target    {made.target}, glibc {made.glibc} or newer")
    if ssh is None:
        return
    with SshBoard(ssh, made, local_port=local_port) as started:
        print_note(f"{ssh} is ready at --device {started.address}; Ctrl-C ends it")
        started.wait()


def start(
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME|FILE.toml",
            help="The board it stands for: rpi3, rpi4, rpi5, rk3588, ...",
            show_default=False,
        ),
    ],
    emulated: Annotated[
        bool,
        typer.Option(
            "--emulated", help="Emulate it here; a real board is started from its own archive."
        ),
    ] = False,
    tracker: Annotated[
        str | None,
        typer.Option("--tracker", metavar="HOST:PORT", help="Register there.", show_default=False),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="NAME", help="Register under this. [default: the target's name]"
        ),
    ] = None,
    auth_key_file: Annotated[
        Path | None,
        typer.Option(
            "--auth-key-file",
            metavar="FILE",
            help="Let in only who holds this key.",
            show_default=False,
        ),
    ] = None,
    session_timeout_s: Annotated[
        float,
        typer.Option("--session-timeout-s", metavar="S", help="The longest one session may take."),
    ] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Start an AArch64 board that is emulated here, and return when it is ready.

    It runs until `board stop`. It computes what the board does; its times mean nothing.
    """
    from tvm_mobilenet.boards.emulator import start_board
    from tvm_mobilenet.targets import load_target

    if not emulated:
        raise UsageError(
            "board start: only emulated boards are started from here; add --emulated, or copy "
            "what `board bundle` makes to the board and start it there"
        )
    with show_progress() as progress:
        progress.start(f"starting an emulated {target}")
        started = start_board(
            load_target(target),
            tracker=tracker,
            key=key,
            auth_key_file=auth_key_file,
            session_timeout_s=session_timeout_s,
        )
        progress.done(f"{started.name} is ready")
    if as_json:
        print_json(started.to_dict())
        return
    _print([started])


def stop(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="As `board list` shows it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Stop every emulated board.")] = False,
) -> None:
    """Stop an emulated board, with whatever runs on it."""
    from tvm_mobilenet.boards.emulator import find_board, stop_board
    from tvm_mobilenet.boards.registry import list_boards

    if (name is None) != every:
        raise UsageError("board stop: give the name of a board, or --all")
    boards = [find_board(name)] if name is not None else list_boards(starting=True)
    for one in boards:
        stop_board(one)
        print_line(f"{one.name} stopped")
    if not boards:
        print_note("no emulated board is running")


def list_(as_json: AsJson = False) -> None:
    """List the emulated boards that run on this machine."""
    from tvm_mobilenet.boards.registry import list_boards

    boards = list_boards()
    if as_json:
        print_json([one.to_dict() for one in boards])
        return
    if not boards:
        print_note("no emulated board is running")
        return
    _print(boards)


def _print(boards: list[Board]) -> None:
    print_table(
        ("board", "target", "device", "tracker", "key", "process", "up for"),
        [
            (
                one.name,
                one.target,
                one.address,
                one.tracker,
                one.key,
                one.pid,
                f"{time.time() - one.started:.0f} s",
            )
            for one in boards
        ],
    )
