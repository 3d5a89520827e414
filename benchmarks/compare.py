"""Time our compiled models beside other inference engines, all in one run.

    python benchmarks/compare.py                               # the three default models
    python benchmarks/compare.py --families                    # one model of V2, V3 and V4
    python benchmarks/compare.py mobilenet_v1_0.5_160 --threads 1
    python benchmarks/compare.py mobilenet_v1_1.0_224 --dtype int8
    python benchmarks/compare.py quantized.onnx --dtype int8 --json out.json
    python benchmarks/compare.py model.onnx --peers onnxruntime openvino --json out.json
    python benchmarks/compare.py ssdlite_mobilenet_v3_large_320 --heads
    python benchmarks/compare.py --ours build/                 # libraries compiled before

Every engine gets the same ONNX file and the same input; an engine that computes something else is
not timed. Engines take turns, in an order shuffled each round; the ratio in the table is the median
of the per-round ratios to the fastest peer.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.absence import EngineUnavailableError
from benchmarks.agreement import DTYPES, Reference, compute_reference
from benchmarks.cases import Case, prepare_case
from benchmarks.comparison import Comparison, Entry
from benchmarks.engine import Job
from benchmarks.engines import OURS, PEAK
from benchmarks.onnx_graph import OnnxGraph, read_graph, seeded_inputs
from benchmarks.peers import PEERS
from benchmarks.table import render, write_json
from benchmarks.workers import BurstPlan, Worker
from tvm_mobilenet.errors import TvmMobilenetError

DEFAULT_MODELS = ("mobilenet_v1_1.0_224", "mobilenet_v1_0.5_160", "mobilenet_v1_0.25_128")
FAMILY_MODELS = (
    "mobilenet_v2_1.0_224",
    "mobilenet_v3_large_1.0_224",
    "mobilenet_v3_small_1.0_224",
    "mobilenet_v4_conv_small_224",
)


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    args = _parse(words)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
            cases = [
                prepare_case(
                    model,
                    folder,
                    dtype=args.dtype,
                    target=args.target,
                    ours=args.ours,
                    use_logs=not args.no_logs,
                    heads=args.heads,
                )
                for model in args.models
            ]
            names = [*dict.fromkeys(args.peers), OURS]
            if args.dtype == "float32":  # the peak is of float32 multiply-adds
                names.append(PEAK)
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
                write_json(args.json, comparisons, args.dtype, words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (TvmMobilenetError, EngineUnavailableError, OSError) as err:
        print(f"compare: {err}", file=sys.stderr)
        return err.exit_code if isinstance(err, TvmMobilenetError) else 1
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL|FILE.onnx")
    parser.add_argument(
        "--families", action="store_true", help="V2, V3-Large, V3-Small and V4-Conv-Small as well"
    )
    parser.add_argument(
        "--onnx", nargs="+", default=[], metavar="FILE", help="the same as naming the file"
    )
    parser.add_argument("--threads", nargs="+", type=_positive, default=[1, 2], metavar="N")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=_positive, default=15, metavar="N")
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=list(PEERS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    ours = parser.add_mutually_exclusive_group()
    ours.add_argument(
        "--ours", type=Path, metavar="DIR", help="artifact, or a folder with one for each model"
    )
    ours.add_argument("--target", default="host", help="what to compile for (default: host)")
    parser.add_argument(
        "--heads", action="store_true", help="detectors without their suppression, for all engines"
    )
    parser.add_argument("--no-logs", action="store_true", help="computed schedules alone")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and of the order of turns")
    args = parser.parse_args(argv)
    if args.families:
        args.models += FAMILY_MODELS
    args.models = [*args.models, *args.onnx] or list(DEFAULT_MODELS)
    return args


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def compare_case(
    case: Case, workers: Sequence[Worker], rounds: int, seed: int = 0, dtype: str = "float32"
) -> Iterator[Comparison]:
    """Load one model into every worker, check parity, and time one thread count after another."""
    graph = read_graph(case.onnx)
    inputs = seeded_inputs(graph, seed)
    reference = compute_reference(graph, inputs, dtype)
    loaded = [
        (w, _load(w, case, Job(case.onnx, inputs, w.threads, case.artifact, dtype), reference))
        for w in workers
    ]
    rng = random.Random(seed)
    for threads in dict.fromkeys(w.threads for w in workers):
        mine = [(w, e) for w, e in loaded if w.threads == threads]
        stolen = _take_turns(mine, rounds, rng)
        for worker, entry in mine:
            _check_again(worker, entry, reference)
        yield _comparison(case, graph, dtype, [e for _, e in mine], stolen)


def _load(worker: Worker, case: Case, job: Job, reference: Reference) -> Entry:
    """Load the model into one worker, and say in the entry if it must not be timed."""
    entry = Entry(worker.engine, worker.threads)
    if worker.engine == OURS and case.artifact is None:
        entry.absence = case.absence
        return entry
    try:
        entry.loaded = worker.load(job)
    except EngineUnavailableError as err:
        entry.absence = str(err)
        return entry
    if worker.engine != PEAK:
        entry.agreement = reference.judge(entry.loaded.outputs)
        entry.absence = entry.agreement.failure
    return entry


def _check_again(worker: Worker, entry: Entry, reference: Reference) -> None:
    """Take an engine out whose outputs are others after its turns than before them."""
    if entry.engine == PEAK or entry.absence:
        return
    if failure := reference.judge(worker.outputs()).failure:
        entry.absence = f"after its turns the {failure}"
        entry.turns.clear()


def _take_turns(loaded: Sequence[tuple[Worker, Entry]], rounds: int, rng: random.Random) -> float:
    """Let every engine have its turn in every round; return the share of time that was stolen."""
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
    return stolen[0]


def _comparison(
    case: Case, graph: OnnxGraph, dtype: str, entries: Sequence[Entry], stolen: float
) -> Comparison:
    peak_gflops = None
    for peak in (e for e in entries if e.engine == PEAK and e.turns):
        assert peak.loaded is not None
        peak_gflops = float(peak.loaded.outputs[0][0]) / peak.series.median_ms / 1e6
    return Comparison(
        model=case.name,
        dtype=dtype,
        threads=entries[0].threads,
        macs=graph.macs,
        entries=tuple(e for e in entries if e.engine != PEAK),
        peak_gflops=peak_gflops,
        stolen=stolen,
    )


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


if __name__ == "__main__":
    sys.exit(main())
