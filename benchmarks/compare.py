"""Time our compiled models beside other inference engines, all in one run.

    python benchmarks/compare.py                               # the three default models
    python benchmarks/compare.py mobilenet_v1_0.5_160 --threads 1
    python benchmarks/compare.py model.onnx --peers onnxruntime openvino --json out.json
    python benchmarks/compare.py --ours build/                 # libraries compiled before

Every engine gets the same ONNX file and the same input; an engine whose output is not ONNX
Runtime's is not timed. Engines take turns, in an order shuffled each round; the ratio in the table
is the median of the per-round ratios to the fastest peer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.engines import OURS, PEAK, PEERS, EngineUnavailableError, Job
from benchmarks.onnx_graph import GraphError, OnnxGraph, read_graph, seeded_inputs
from benchmarks.series import Series, fastest, paired_ratio
from benchmarks.workers import BurstPlan, Loaded, Worker
from tvm_mobilenet.errors import TvmMobilenetError

DEFAULT_MODELS = ("mobilenet_v1_1.0_224", "mobilenet_v1_0.5_160", "mobilenet_v1_0.25_128")
REFERENCE = "onnxruntime"
PARITY_LIMIT = {"float32": 1e-4}
"""Relative L2 distance to ONNX Runtime's output. Two float32 engines that add in another order
differ by about 1e-6 after 28 layers; a wrong padding or a bfloat16 kernel by more than 1e-3."""


@dataclass(frozen=True, slots=True)
class Case:
    """One model to compare on."""

    name: str
    onnx: Path
    artifact: Path | None
    absence: str = ""
    """Why there is no artifact."""


@dataclass(slots=True)
class Entry:
    """One line of the table: an engine at one thread count, on one model."""

    engine: str
    threads: int
    loaded: Loaded | None = None
    absence: str = ""
    error_l2: float = 0.0
    """Relative L2 distance to ONNX Runtime's output."""
    turns: list[tuple[float, ...]] = field(default_factory=list)
    idle_cpu_ms: list[float] = field(default_factory=list)
    linger_ms: list[float] = field(default_factory=list)

    @property
    def series(self) -> Series:
        """Its turns so far."""
        return Series(tuple(self.turns))


@dataclass(frozen=True, slots=True)
class Comparison:
    """All lines of one model at one thread count."""

    case: Case
    threads: int
    macs: int
    entries: tuple[Entry, ...]
    peak_gflops: float | None
    """What this many cores can do at all, measured in the same rounds."""
    stolen: float
    """Share of the processors' time that the hypervisor gave to others meanwhile."""

    @property
    def measured(self) -> list[Entry]:
        """The lines that have figures."""
        return [e for e in self.entries if e.turns]

    @property
    def fastest_peer(self) -> Entry | None:
        """The measured engine, ours apart, that is closest to each round's best peer."""
        peers = [e for e in self.measured if e.engine != OURS]
        best = fastest([e.series for e in peers])
        return peers[best] if peers else None


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
            cases = [prepare(model, args, folder) for model in args.models]
            names = [REFERENCE, *(p for p in args.peers if p != REFERENCE), OURS, PEAK]
            workers = [
                stack.enter_context(Worker(name, threads))
                for threads in args.threads
                for name in names
            ]
            comparisons = []
            for case in cases:
                for comparison in compare_case(case, workers, args.rounds, args.seed, args.dtype):
                    print(render(comparison), flush=True)
                    comparisons.append(comparison)
            if args.json:
                _write_json(args.json, comparisons, args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (TvmMobilenetError, EngineUnavailableError, OSError) as err:
        print(f"compare: {err}", file=sys.stderr)
        return err.exit_code if isinstance(err, TvmMobilenetError) else 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=list(DEFAULT_MODELS), metavar="MODEL|FILE.onnx"
    )
    parser.add_argument("--threads", nargs="+", type=_positive, default=[1, 2], metavar="N")
    parser.add_argument("--dtype", choices=sorted(PARITY_LIMIT), default="float32")
    parser.add_argument("--rounds", type=_positive, default=15, metavar="N")
    parser.add_argument(
        "--peers", nargs="*", choices=sorted(PEERS), default=["onnxruntime", "openvino", "ncnn"]
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    ours = parser.add_mutually_exclusive_group()
    ours.add_argument(
        "--ours", type=Path, metavar="DIR", help="artifact, or a folder with one for each model"
    )
    ours.add_argument("--target", default="host", help="what to compile for (default: host)")
    parser.add_argument("--no-logs", action="store_true", help="computed schedules alone")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and of the order of turns")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def prepare(model: str, args: argparse.Namespace, folder: Path) -> Case:
    """Find or make the ONNX file and our library of one model; `folder` takes what is made."""
    name = Path(model).stem if model.endswith(".onnx") else model
    if args.ours is not None:
        artifact = _artifact_in(args.ours, name)
        onnx = artifact / "model.onnx" if artifact else None
        if onnx is None or not onnx.is_file():
            onnx = _onnx_of(model, folder)
        return Case(name, onnx, artifact, f"{args.ours} holds no artifact of {name}")
    onnx = _onnx_of(model, folder)
    artifact = folder / name
    try:
        from tvm_mobilenet.workflow import compile_model

        print(f"compiling {name} for {args.target}", file=sys.stderr)
        compile_model(onnx, target=args.target, out=artifact, use_logs=not args.no_logs)
    except (TvmMobilenetError, ImportError) as err:
        return Case(name, onnx, None, f"not compiled: {err}")
    return Case(name, onnx, artifact)


def _artifact_in(folder: Path, name: str) -> Path | None:
    """Return the artifact of model `name`: `folder` itself, or a folder in it."""
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        manifest = candidate / "manifest.json"
        if manifest.is_file():
            described = json.loads(manifest.read_text(encoding="utf-8"))["model"]["name"]
            if name in (described, candidate.name):
                return candidate
    return None


def _onnx_of(model: str, folder: Path) -> Path:
    if model.endswith(".onnx"):
        if not (path := Path(model)).is_file():
            raise GraphError(f"{path}: no such file")
        return path
    from tvm_mobilenet.export import export_onnx

    print(f"exporting {model} with random weights (seed 0)", file=sys.stderr)
    return Path(export_onnx(model, out=folder / f"{model}.onnx").path)


def compare_case(
    case: Case, workers: Sequence[Worker], rounds: int, seed: int = 0, dtype: str = "float32"
) -> Iterator[Comparison]:
    """Load one model into every worker, check parity, and time one thread count after another."""
    graph = read_graph(case.onnx)
    inputs = seeded_inputs(graph, seed)
    reference: list[np.ndarray] | None = None
    loaded: list[tuple[Worker, Entry]] = []
    for worker in workers:
        entry = Entry(worker.engine, worker.threads)
        loaded.append((worker, entry))
        if worker.engine == OURS and case.artifact is None:
            entry.absence = case.absence
            continue
        try:
            entry.loaded = worker.load(Job(case.onnx, inputs, worker.threads, case.artifact))
        except EngineUnavailableError as err:
            if worker.engine == REFERENCE:
                raise EngineUnavailableError(
                    f"{REFERENCE}, the reference of parity: {err}"
                ) from err
            entry.absence = str(err)
            continue
        if worker.engine == REFERENCE and reference is None:
            reference = list(entry.loaded.outputs)
        if worker.engine != PEAK:
            assert reference is not None  # the reference comes first
            _check_parity(entry, reference, PARITY_LIMIT[dtype])
    rng = random.Random(seed)
    for threads in dict.fromkeys(w.threads for w in workers):
        mine = [(w, e) for w, e in loaded if w.threads == threads]
        yield _measure(case, graph, threads, mine, rounds, rng)


def _check_parity(entry: Entry, reference: Sequence[np.ndarray], limit: float) -> None:
    assert entry.loaded is not None
    outputs = entry.loaded.outputs
    if [o.shape for o in outputs] != [r.shape for r in reference]:
        entry.absence = f"outputs have shapes {[o.shape for o in outputs]}"
        return
    entry.error_l2 = max(map(_relative_l2, outputs, reference))
    if not entry.error_l2 <= limit:
        entry.absence = f"output differs from {REFERENCE}'s: relative L2 {entry.error_l2:.1e}"


def _relative_l2(value: np.ndarray, reference: np.ndarray) -> float:
    exact = reference.astype(np.float64)
    return float(np.linalg.norm(value - exact) / max(float(np.linalg.norm(exact)), 1e-30))


def _measure(
    case: Case,
    graph: OnnxGraph,
    threads: int,
    loaded: Sequence[tuple[Worker, Entry]],
    rounds: int,
    rng: random.Random,
) -> Comparison:
    plan = BurstPlan()
    turns = [(worker, entry) for worker, entry in loaded if not entry.absence]
    with _steal_meter() as stolen:
        for _ in range(rounds):
            rng.shuffle(turns)
            for worker, entry in turns:
                burst = worker.burst(plan)
                entry.turns.append(burst.latencies_ms)
                entry.idle_cpu_ms.append(burst.idle_cpu_ms)
                entry.linger_ms.append(burst.linger_ms)
    peak = next(e for _, e in loaded if e.engine == PEAK)
    peak_gflops = None
    if peak.turns and peak.loaded is not None:
        peak_gflops = float(peak.loaded.outputs[0][0]) / peak.series.median_ms / 1e6
    entries = tuple(e for _, e in loaded if e is not peak)
    return Comparison(case, threads, graph.macs, entries, peak_gflops, stolen[0])


@contextmanager
def _steal_meter() -> Iterator[list[float]]:
    """Yield a list that holds, afterwards, the share of time that the hypervisor kept."""
    result = [0.0]
    before = _cpu_ticks()
    yield result
    spent = np.subtract(_cpu_ticks(), before)
    if spent.size > 7 and spent.sum():
        result[0] = float(spent[7] / spent.sum())


def _cpu_ticks() -> list[int]:
    # user nice system idle iowait irq softirq steal ...
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
        return [int(n) for n in first.split()[1:]]
    except OSError:
        return []


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def render(comparison: Comparison) -> str:
    """Return the table of one model at one thread count."""
    threads = comparison.threads
    noun = "thread" if threads == 1 else "threads"
    rounds = len(comparison.measured[0].turns) if comparison.measured else 0
    floor = ""
    if comparison.peak_gflops is not None:
        floor_ms = 2 * comparison.macs / comparison.peak_gflops / 1e6
        floor = f"; peak {comparison.peak_gflops:.0f} GFLOP/s, floor {floor_ms:.3f} ms"
    lines = [
        f"{comparison.case.name}, float32, batch 1, {threads} {noun}, {rounds} rounds, "
        f"{comparison.macs / 1e6:.1f} M multiply-adds",
        f"{cpu_name()}, {os.cpu_count()} processors{floor}",
        f"{'engine':<14}{'version':<16}{'median ms':>10}{'min':>9}{'p90':>9}{'ratio':>8}"
        f"{'GFLOP/s':>9}{'of peak':>9}{'rel. L2':>10}",
    ]
    lines += [_row(entry, comparison) for entry in comparison.entries]
    lines += [f"  note: {note}" for note in warnings_of(comparison)]
    return "\n".join(lines) + "\n"


def _row(entry: Entry, comparison: Comparison) -> str:
    version = entry.loaded.version if entry.loaded else ""
    if entry.absence:
        return f"{entry.engine:<14}{version:<16}absent: {entry.absence}"
    numbers = numbers_of(entry, comparison)
    share = numbers["share_of_peak"]
    return (
        f"{entry.engine:<14}{version:<16}{numbers['median_ms']:>10.3f}{numbers['min_ms']:>9.3f}"
        f"{numbers['p90_ms']:>9.3f}{numbers['ratio']:>8.3f}{numbers['gflops']:>9.1f}"
        f"{'' if share is None else f'{share:.0%}':>9}{entry.error_l2:>10.0e}"
    )


def numbers_of(entry: Entry, comparison: Comparison) -> dict[str, Any]:
    """Return what the table says of one engine, as plain numbers."""
    series, best = entry.series, comparison.fastest_peer
    gflops = 2 * comparison.macs / series.median_ms / 1e6
    peak = comparison.peak_gflops
    return {
        "median_ms": series.median_ms,
        "min_ms": series.min_ms,
        "p90_ms": series.p90_ms,
        "spread": series.spread,
        "ratio": paired_ratio(series, best.series) if best else float("nan"),
        "gflops": gflops,
        "share_of_peak": gflops / peak if peak else None,
    }


def warnings_of(comparison: Comparison) -> list[str]:
    """Return what a reader should know before trusting the figures."""
    notes = []
    noisy = [e for e in comparison.measured if e.series.is_noisy]
    if noisy:
        names = ", ".join(f"{e.engine} {e.series.spread:.0%}" for e in noisy)
        notes.append(f"noisy, rounds differ by (interquartile range over median): {names}")
    if comparison.stolen > 0.01:
        notes.append(f"the hypervisor kept {comparison.stolen:.1%} of the processors' time")
    cores = os.cpu_count() or 1
    if comparison.threads > cores:
        notes.append(f"{comparison.threads} threads on {cores} processors")
    for entry in comparison.measured:
        if (idle := float(np.median(entry.idle_cpu_ms[1:] or [0.0]))) > 2.0:
            notes.append(f"{entry.engine} used {idle:.0f} ms of CPU time between its turns")
    return notes


def _write_json(path: Path, comparisons: Sequence[Comparison], args: argparse.Namespace) -> None:
    document = {
        "format_version": 1,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu_name(),
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "dtype": args.dtype,
        "batch": 1,
        "results": [_as_json(c) for c in comparisons],
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _as_json(comparison: Comparison) -> dict[str, Any]:
    best = comparison.fastest_peer
    return {
        "model": comparison.case.name,
        "threads": comparison.threads,
        "macs": comparison.macs,
        "peak_gflops": comparison.peak_gflops,
        "fastest_peer": best.engine if best else None,
        "stolen_share": comparison.stolen,
        "warnings": warnings_of(comparison),
        "engines": [_entry_json(entry, comparison) for entry in comparison.entries],
    }


def _entry_json(entry: Entry, comparison: Comparison) -> dict[str, Any]:
    result: dict[str, Any] = {"engine": entry.engine, "absence": entry.absence or None}
    if entry.loaded:
        result |= {
            "version": entry.loaded.version,
            "settings": entry.loaded.note,
            "load_ms": entry.loaded.load_ms,
            "relative_l2": entry.error_l2,
        }
    if entry.turns:
        result |= numbers_of(entry, comparison)
        result |= {
            "round_medians_ms": entry.series.round_medians_ms,
            "inferences": sum(map(len, entry.turns)),
            "linger_ms": float(np.median(entry.linger_ms)),
        }
    return result


if __name__ == "__main__":
    sys.exit(main())
