"""Tuning a model: its tasks, the machine to measure on, and a search over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tvm_mobilenet.errors import SpecError, UsageError, error_context
from tvm_mobilenet.protocols import Device, NoProgress, Progress
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.workflow import onnx_file

if TYPE_CHECKING:
    from tvm_mobilenet.tuning.measurer import Measurer
    from tvm_mobilenet.tuning.report import TuningReport
    from tvm_mobilenet.tuning.stock import StockTuner
    from tvm_mobilenet.tuning.workers import Builds

__all__ = ["DEFAULT_MINUTES", "tune_model"]

DEFAULT_MINUTES = 10.0


def tune_model(
    model: str | Path,
    *,
    target: str | Path | TargetSpec = "host",
    trials: int | None = None,
    minutes: float | None = None,
    threads: int | None = None,
    cache: Literal["cold", "warm"] = "cold",
    logs: Path | str | None = None,
    dry_run: bool = False,
    builders: int | str | None = None,
    compiler: str | None = None,
    cost: Literal["latency", "instructions"] = "latency",
    device: Device | None = None,
    cpus: Sequence[int] = (),
    measurer: Measurer | None = None,
    space: Literal["computed", "stock"] = "computed",
    most_tasks: int | None = None,
    progress: Progress | None = None,
) -> TuningReport:
    """Search for better plans for the kernels of a model, and record what is found.

    The budget is for the search as a whole: called again with the same model, target and threads,
    it goes on where it was and spends what is left. `compile_model` then uses the best records.

    Args:
        model: a name (`mobilenet_v1_0.5_160`) or the path of an `.onnx` file; its weights do not
            matter.
        target: a target's name, a target file, or a loaded target.
        trials: how many candidates to measure.
        minutes: how long to search, where no number of trials is given; None for ten.
        threads: how many threads compute; None for as many as the target has cores.
        cache: `cold` for weights from beyond the cores' caches, as in a whole model; or `warm`.
        logs: the folder to record in; None for the user's own.
        dry_run: say what would be tuned, and measure nothing.
        builders: how many processes build, None for one on each processor; or a Dask scheduler,
            `tcp://HOST:PORT`, on whose workers candidates are built.
        compiler: the C compiler to link with, in place of the target's own choice.
        cost: what to bring down: `latency`, or the weighted `instructions` that an emulated board
            counts, with one thread.
        device: the board to measure on, or the tracker's boards of one kind, all at once; None for
            this machine.
        cpus: the processors of a board to compute on; empty for its choice.
        measurer: what to measure on in place of both, closed afterwards.
        space: `computed` for the plans around the computed ones; `stock` for what MetaSchedule's
            own rules propose, on this machine's processor: to compare with, `compile` never takes
            it.
        most_tasks: only so many tasks, those with the most multiply-adds in an inference; None for
            all.
        progress: told of every candidate.

    Raises:
        UsageError: the request cannot be met: model, target, budget, a target that is not this
            machine where no board is given, or instructions that are not to be counted.
        DeviceError: no board answers, or the last one has gone.
        OutputError: the log cannot be written.
        TuningError: nothing can be built or measured at all.
    """
    progress = progress or NoProgress()
    spec = target if isinstance(target, TargetSpec) else load_target(target)
    budget_seconds = _checked_budget(trials, minutes)
    builders = _checked_builders(builders)
    if space == "stock":
        _check_stock(spec, device, builders, cost)

    from tvm_mobilenet.tuning.budget import Budget
    from tvm_mobilenet.tuning.recorded import read_stores
    from tvm_mobilenet.tuning.scratch import scratch_folder
    from tvm_mobilenet.tuning.store import user_store
    from tvm_mobilenet.tuning.tasks import largest, model_tasks
    from tvm_mobilenet.tuning.tuner import Tuner

    measurer = measurer or _measurer(spec, device, cpus, threads, cache, cost)
    with ExitStack() as stack:
        stack.callback(measurer.close)
        stack.enter_context(error_context(stage="tune", model=str(model), target=spec.name))
        folder = stack.enter_context(scratch_folder())
        onnx_path = onnx_file(model, folder / "model.onnx", progress=progress)
        progress.start("looking for what there is to tune")
        found = model_tasks(onnx_path, spec)
        progress.done(f"{len(found.tasks)} kernels")
        if not found.tasks:
            raise UsageError(
                f"model {model}: none of its operators is served by a kernel that has plans; "
                "compile it as it is"
            )
        settings = {
            "target": spec.model_dump_json(by_alias=True),
            "folder": str(folder),
            "compiler": compiler,
        }
        pool = _builds(builders, settings, measurer)
        stack.callback(pool.close)
        tasks, left = list(largest(found.tasks, most_tasks)), found.left_as_computed
        common: dict[str, Any] = {
            "model": Path(model).stem if str(model).endswith(".onnx") else str(model),
            "target": spec,
            "store": user_store(logs),
            "reading": read_stores(spec, logs),
            "measurer": measurer,
            "builders": pool,
            "budget": Budget(trials, budget_seconds),
            "progress": progress,
        }
        tuner: Tuner | StockTuner
        if space == "stock":
            from tvm_mobilenet.tuning.stock import StockTuner, stock_tasks

            tasks, others = stock_tasks(tasks)
            left = (*left, *others)
            processors = len(os.sched_getaffinity(0))
            tuner = StockTuner(tasks=tasks, processors=processors, **common)
        else:
            tuner = Tuner(tasks=tasks, **common)
        report = tuner.report(is_dry_run=True) if dry_run else tuner.run()
        return replace(report, left_as_computed=left)


def _check_stock(
    spec: TargetSpec, device: Device | None, builders: int | str | None, cost: str
) -> None:
    """Refuse what MetaSchedule's rules are not compared on."""
    from tvm_mobilenet.tuning.stock import check_stock_is_there

    if spec.gpu is not None or device is not None or isinstance(builders, str) or cost != "latency":
        raise UsageError(
            "space stock: it is compared by latency on this machine's processor alone; leave out "
            "boards, GPUs, clusters and --cost, or tune with --space computed"
        )
    check_stock_is_there()


def _builds(builders: int | str | None, settings: dict[str, Any], measurer: Measurer) -> Builds:
    """Return what builds candidates."""
    if isinstance(builders, str):
        from tvm_mobilenet.tuning.dask_builds import DaskBuilds

        return DaskBuilds(builders, settings)
    from tvm_mobilenet.tuning.workers import BuildPool

    processors = len(os.sched_getaffinity(0))
    count = builders or processors
    # A count is the same whatever else is at work, and a board has processors of its own.
    rests = measurer.is_here and count + measurer.threads > processors
    return BuildPool(settings, count, rests=rests)


def _measurer(
    spec: TargetSpec,
    device: Device | None,
    cpus: Sequence[int],
    threads: int | None,
    cache: Literal["cold", "warm"],
    cost: Literal["latency", "instructions"],
) -> Measurer:
    """Return what candidates are measured on."""
    from tvm_mobilenet.rpc.board_device import BoardDevice

    if isinstance(device, BoardDevice):
        from tvm_mobilenet.rpc.board_measurer import BoardMeasurer, count_boards

        return BoardMeasurer(
            spec,
            device,
            boards=count_boards(device),
            threads=threads,
            cache=cache,
            cost=cost,
            cpus=cpus,
        )
    if cpus:
        raise UsageError("cpus: they are a board's; give --tracker, --device or --emulated")
    if device is not None:
        raise UsageError(f"device {type(device).__name__}: give a board, or none for this machine")
    if cost != "latency":
        raise UsageError(
            f"cost {cost}: only an emulated board counts instructions; give --emulated"
        )
    if spec.gpu is not None:
        return _opencl_measurer(spec, cache)
    from tvm_mobilenet.tuning.local import LocalMeasurer

    _check_is_host(spec)
    return LocalMeasurer(spec, threads=threads, cache=cache)


def _opencl_measurer(spec: TargetSpec, cache: Literal["cold", "warm"]) -> Measurer:
    if not spec.is_host:
        raise UsageError(
            f"target {spec.name}: its GPU is on a board; give --tracker or --device, or tune for "
            "this machine's OpenCL device with --target opencl-generic"
        )
    from tvm_mobilenet.opencl.runtime import local_device
    from tvm_mobilenet.tuning.opencl_measurer import OpenCLMeasurer

    local_device()  # says what is missing before anything is built
    return OpenCLMeasurer(spec, cache=cache)


def _checked_budget(trials: int | None, minutes: float | None) -> float | None:
    """Return the seconds to search, or None where the trials are counted."""
    if trials is not None and minutes is not None:
        raise UsageError(f"trials {trials} and minutes {minutes:g}: give one of the two")
    if trials is not None:
        if trials < 1:
            raise SpecError(f"trials {trials}: give 1 or more")
        return None
    minutes = DEFAULT_MINUTES if minutes is None else minutes
    if not 0 < minutes <= 100_000:
        raise SpecError(f"minutes {minutes:g}: give more than 0")
    return minutes * 60


def _checked_builders(builders: int | str | None) -> int | str | None:
    """Return a number of processes, or a scheduler's address."""
    if isinstance(builders, str) and builders.startswith(("tcp://", "tls://")):
        return builders
    try:
        count = None if builders is None else int(builders)
    except ValueError:
        raise UsageError(
            f"builders {builders}: give a number of processes, or a Dask scheduler as "
            "tcp://HOST:PORT"
        ) from None
    if count is not None and count < 1:
        raise SpecError(f"builders {count}: give 1 or more")
    return count


def _check_is_host(spec: TargetSpec) -> None:
    """Refuse a target whose code this machine cannot run."""
    if spec.is_host:
        return
    host = load_target("host")
    if spec.tvm != host.tvm or spec.cpu.isa != host.cpu.isa:
        raise UsageError(
            f"target {spec.name}: this machine is {host.tvm.mcpu}, and candidates are measured on "
            "it; give --tracker, --device or --emulated, or tune with --target host"
        )
