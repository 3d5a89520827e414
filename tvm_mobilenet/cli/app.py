"""The command `tvm-mobilenet`: its sub-commands, and the one place where errors are caught."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tvm_mobilenet import __version__
from tvm_mobilenet.cli import (
    board,
    bundle,
    classify,
    detect,
    devices,
    doctor,
    explore,
    export,
    logs,
    measure,
    models,
    quantize,
    report,
    run,
    segment,
    serve,
    targets,
    tracker,
    train,
    tune,
    verify,
)
from tvm_mobilenet.cli import compile as compile_command
from tvm_mobilenet.cli.console import print_error, print_line, set_verbosity, verbosity
from tvm_mobilenet.errors import TvmMobilenetError

__all__ = ["app", "main", "run_command"]

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended: 128 + SIGINT
TERMINATED = 128 + signal.SIGTERM

_EXIT_CODES = (
    "Exit codes: 0 done, 2 usage, 3 outputs disagree, 4 device, 130 interrupted, 1 the rest."
)

app = typer.Typer(
    name="tvm-mobilenet",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _example(command: str) -> str:
    # \b keeps the help from wrapping the paragraph: the line can be copied as it stands.
    return f"\b\nExample:\n  tvm-mobilenet {command}"


app.command(epilog=_example("models"))(models.models)

_targets = typer.Typer(rich_markup_mode=None)
_targets.callback(invoke_without_command=True, epilog=_example("targets"))(targets.targets)
_targets.command(epilog=_example("targets show rpi4"))(targets.show)
_targets.command(epilog=_example("targets predict rk3399-mali mobilenet_v1_1.0_224"))(
    targets.predict
)
app.add_typer(_targets, name="targets")

_logs = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
_logs.callback(epilog=_example("logs list"))(logs.logs)
_logs.command("list", epilog=_example("logs list"))(logs.list_)
_logs.command(epilog=_example("logs show --target host"))(logs.show)
_logs.command(epilog=_example("logs merge /media/other/tuning_logs"))(logs.merge)
_logs.command(epilog=_example("logs prune host"))(logs.prune)
_logs.command(epilog=_example("logs export host -o host.jsonl"))(logs.export)
_logs.command("import", epilog=_example("logs import host.jsonl"))(logs.import_)
app.add_typer(_logs, name="logs")

app.command(epilog=_example("train mobilenet_v1_0.25_32 --data digits -o digits.safetensors"))(
    train.train
)
app.command(
    epilog=_example("export mobilenet_v1_0.25_32 --weights digits.safetensors -o digits.onnx")
)(export.export)
app.command(epilog=_example("quantize mobilenet_v1_0.5_160 --calibration random -o half.onnx"))(
    quantize.quantize
)
app.command("compile", epilog=_example("compile mobilenet_v1_0.5_160 --target rpi4 -o rpi4/"))(
    compile_command.compile_
)
app.command(epilog=_example("tune mobilenet_v1_0.25_128 --minutes 3"))(tune.tune)
app.command(epilog=_example("verify host/ --inputs 32"))(verify.verify)
app.command(epilog=_example("measure host/ --threads 1 --profile"))(measure.measure)
app.command(epilog=_example("classify host/ cat.jpg dog.png"))(classify.classify)
app.command(epilog=_example("detect ssd/ street.jpg -o found.png --threshold 0.4"))(detect.detect)
app.command(epilog=_example("segment host/ street.jpg -o masks/"))(segment.segment)
app.command(epilog=_example("bundle rpi4/ -o product.tar.gz"))(bundle.bundle)
app.command(epilog=_example("run mobilenet_v1_0.5_160 -o out/half"))(run.run)
app.command(epilog=_example("explore --budget-ms 5 --families v2,v3 --threads 1"))(explore.explore)
app.command(epilog=_example("report measure.json verify.json host/ -o report.html"))(report.report)

app.command(epilog=_example("tracker --port 9190"))(tracker.tracker)
app.command(epilog=_example("devices --tracker 127.0.0.1:9190"))(devices.devices)
app.command(epilog=_example("serve --tracker 127.0.0.1:9190 --key desk"))(serve.serve)
app.command(epilog=_example("doctor --tracker 127.0.0.1:9190 --key rpi4"))(doctor.doctor)

_board = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
_board.callback(epilog=_example("board start --target rpi4 --emulated"))(board.board)
_board.command(epilog=_example("board bundle --target rpi4 -o rpi4-board.tar.gz"))(board.bundle)
_board.command(epilog=_example("board start --target rpi4 --emulated"))(board.start)
_board.command(epilog=_example("board stop rpi4"))(board.stop)
_board.command("list", epilog=_example("board list --json"))(board.list_)
app.add_typer(_board, name="board")


def _print_version(value: bool) -> None:
    if value:
        print_line(f"tvm-mobilenet {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        int,
        typer.Option(
            "-v", "--verbose", count=True, show_default=False, help="Say more; -vv shows traces."
        ),
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Make fast, verified shared libraries of MobileNets, for this machine and for boards."""
    set_verbosity(-1 if quiet else verbose)


def main() -> None:
    """Run the command line of this process and exit with its code."""
    # By default SIGTERM ends Python without unwinding, and temporary files would stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error becomes one line on stderr."""
    set_verbosity(0)
    try:
        app(args=list(arguments), prog_name="tvm-mobilenet")
    except SystemExit as end:
        # typer turns Ctrl-C into this.
        if end.code in (INTERRUPTED, TERMINATED):
            print_error("interrupted; nothing half-written was left behind")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TvmMobilenetError as err:
        _report(err, str(err))
        return err.exit_code
    except OSError as err:
        if err.errno == errno.EPIPE:
            # The reader has gone (`| head`): nothing to say, and nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        _report(err, f"{err.filename or 'the output'}: {(err.strerror or str(err)).lower()}")
        return 1
    return 0


def _report(err: BaseException, message: str) -> None:
    if verbosity() >= 2:
        traceback.print_exception(err)
    print_error(message)
