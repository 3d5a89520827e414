"""Search with our plans and with MetaSchedule's stock rules, and draw what each reaches when.

    python benchmarks/tuning_curve.py --minutes 3 --threads 1 -o curve.svg --json curve.json
    python benchmarks/tuning_curve.py --models mobilenet_v1_0.5_160 --tasks 6 --minutes 5

Both search the same kernels of the same model from an empty log, one after the other, whose turn is
first changing from model to model; with the same budget of time, the same builders and the same
measurements. Starting processes and importing xgboost are on that budget. A curve
least time measured so far; it begins when each kernel has been measured once. Exporting and
finding the tasks are outside of the budget. Pools and gated products are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from tvm_mobilenet.errors import TvmMobilenetError, UsageError
from tvm_mobilenet.files import new_file
from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.records import TrialRecord, canonical
from tvm_mobilenet.tuning.report import TuningReport
from tvm_mobilenet.tuning.stock import BATCH, POPULATION, check_stock_is_there
from tvm_mobilenet.tuning.store import Store
from tvm_mobilenet.workflow import onnx_file

Space = Literal["computed", "stock"]
_NAMES = {"computed": "tvm-mobilenet", "stock": "MetaSchedule's stock rules"}
_COLOURS = {"computed": "#2f7ed8", "stock": "#d9772b"}  # 3:1 or more on white and on near-black
_QUIET = "#808080"


@dataclass
class Curve:
    """One search: the sums of the best times, in milliseconds, by the seconds since it began."""

    model: str
    space: Space
    points: list[tuple[float, float]]
    candidates: int
    rejected: int
    untuned_ms: float | None
    floor_ms: float


class Begin(NoProgress):
    """Notes when a search begins, its preparations done."""

    at: datetime | None = None

    def start(self, task: str, total: float | None = None) -> None:
        """Take the time of the search itself."""
        if task.startswith("tuning "):
            self.at = datetime.now(timezone.utc)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    try:
        _check(args)
        curves = []
        for turn, model in enumerate(args.models):
            spaces: list[Space] = ["computed", "stock"]
            with tempfile.TemporaryDirectory(prefix="curve-") as folder:
                name = f"{model}.onnx"
                path = onnx_file(model, Path(folder) / name, progress=NoProgress())
                for space in spaces[::-1] if turn % 2 else spaces:
                    curves.append(_search(args, model, path, space, Path(folder) / space))
        facts = _facts(args)
        _print(curves, facts, args.minutes)
        if args.json:
            content = {"facts": facts, "curves": [asdict(curve) for curve in curves]}
            with new_file(args.json) as path:
                path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if args.output:
            _draw(curves, facts, args.output)
    except TvmMobilenetError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v1_1.0_224"])
    parser.add_argument(
        "--tasks", type=int, help="only those with most to compute; all unless given"
    )
    parser.add_argument("--minutes", type=float, default=5, help="of each search")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="the plot, an SVG file")
    parser.add_argument("--json", type=Path, help="every point of it")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    """Refuse what would only fail at the end."""
    check_stock_is_there()
    if args.output:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise UsageError(
                "the plot needs matplotlib, which is not installed; pip install "
                "'tvm-mobilenet[bench]', or leave out -o"
            ) from None


def _search(args: argparse.Namespace, model: str, path: Path, space: Space, logs: Path) -> Curve:
    begin = Begin()
    print(f"{model}: {_NAMES[space]}, {args.minutes:g} minutes", file=sys.stderr)
    report = tune_model(
        path,
        minutes=args.minutes,
        threads=args.threads,
        logs=logs,
        space=space,
        most_tasks=args.tasks,
        progress=begin,
    )
    trials = Store(logs).read("host").trials
    assert begin.at is not None
    return curve_of(report.model, space, trials, report, begin.at)


def curve_of(
    model: str,
    space: Space,
    trials: Sequence[TrialRecord],
    report: TuningReport,
    began: datetime,
) -> Curve:
    """Return the curve that the records of a search make."""
    calls = {task.name: task.calls for task in report.tasks if _is_compared(task.name)}
    best: dict[str, float] = {}
    points: list[tuple[float, float]] = []
    for record in sorted(trials, key=lambda r: r.conditions.date):
        name = _name(record)
        if record.cost is None or name not in calls or record.cost >= best.get(name, float("inf")):
            continue
        best[name] = record.cost
        if len(best) == len(calls):
            seconds = (datetime.fromisoformat(record.conditions.date) - began).total_seconds()
            points.append((seconds, sum(calls[task] * cost for task, cost in best.items())))
    compared = [task for task in report.tasks if task.name in calls]
    return Curve(
        model=model,
        space=space,
        points=points,
        candidates=report.trials,
        rejected=sum(record.verdict == "rejected" for record in trials),
        untuned_ms=None
        if space == "stock"
        else sum(task.calls * (task.untuned or 0.0) for task in compared),
        floor_ms=sum(task.calls * task.floor for task in compared),
    )


def _name(record: TrialRecord) -> str:
    from tvm_mobilenet.tuning.records import workload_from
    from tvm_mobilenet.tuning.tasks import Task

    return Task(record.family, workload_from(record.workload), 1).name


def _is_compared(name: str) -> bool:
    return not name.startswith(("pool", "gated"))


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": load_target("host").description,
        "load_1min": round(os.getloadavg()[0], 1),
        "minutes": args.minutes,
        "threads": args.threads,
        "tasks": args.tasks,
        "stock_population": POPULATION,
        "stock_batch": BATCH,
    }


def at(curve: Curve, seconds: float) -> float | None:
    """Return the sum reached after so many seconds; None before each kernel was measured."""
    reached = [total for when, total in curve.points if when <= seconds]
    return reached[-1] if reached else None


def _print(curves: Sequence[Curve], facts: dict[str, Any], minutes: float) -> None:
    print(canonical(facts))
    marks = [minutes * 60 * share for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    print(f"{'sum of kernels, ms':<44}" + "".join(f"{mark:>9.0f} s" for mark in marks))
    for curve in curves:
        found = [at(curve, mark) for mark in marks[:-1]] + [at(curve, float("inf"))]
        cells = "".join("        -  " if f is None else f"{f:>9.3f}  " for f in found)
        print(f"{curve.model + ', ' + _NAMES[curve.space]:<44}{cells}")
        untuned = "" if curve.untuned_ms is None else f"untuned {curve.untuned_ms:.3f} ms, "
        print(
            f"    {untuned}floor {curve.floor_ms:.3f} ms; {curve.candidates} candidates, "
            f"{curve.rejected} rejected"
        )


def _draw(curves: Sequence[Curve], facts: dict[str, Any], path: Path) -> None:
    """Write the plot: one panel a model, on nothing, in colours that show on white and on black."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
                _QUIET,
            ),
            "svg.fonttype": "none",
            "svg.hashsalt": "tuning-curve",
        }
    )
    models = list(dict.fromkeys(curve.model for curve in curves))
    figure, panels = pyplot.subplots(1, len(models), figsize=(7.2 * len(models), 4), squeeze=False)
    end = facts["minutes"] * 60
    for axes, model in zip(panels[0], models, strict=True):
        for curve in (c for c in curves if c.model == model):
            if curve.points:
                times, totals = zip(*[*curve.points, (end, curve.points[-1][1])], strict=True)
                label, colour = _NAMES[curve.space], _COLOURS[curve.space]
                axes.step(times, totals, where="post", label=label, color=colour, linewidth=2)
            if curve.untuned_ms is not None:
                untuned = {"color": _COLOURS["computed"], "linestyle": "--", "linewidth": 1}
                axes.axhline(curve.untuned_ms, label="computed, untuned", **untuned)
                axes.axhline(curve.floor_ms, label="floor", color=_QUIET, linestyle=":")
        axes.set_title(f"{model}, {facts['threads']} thread(s)")
        axes.set_xlabel("seconds of search")
        axes.set_ylabel("sum of the kernels' best times, ms")
        axes.set_yscale("log")
        axes.set_xlim(0, end)
        axes.grid(visible=True, which="both", color=_QUIET, alpha=0.25, linewidth=0.5)
        axes.legend(framealpha=0)
    with new_file(path) as temporary:
        figure.savefig(
            temporary, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
        )
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
