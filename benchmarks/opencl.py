"""Time TVM's stock GPU schedules, our computed ones and our tuned ones on an OpenCL device.

    python benchmarks/opencl.py                                # mobilenet_v1_1.0_224
    python benchmarks/opencl.py mobilenet_v1_0.5_160 --rounds 5
    python benchmarks/opencl.py --tune-minutes 15              # search first, here and now
    python benchmarks/opencl.py model.onnx --predict rk3399-mali --predict rk3588-mali

All are built by the same TVM from the same ONNX file, checked against ONNX Runtime, and timed in
turn, shuffled each round, on the first OpenCL device of this machine; the ratios are the
medians of the per-round ratios to the faster of the stock ones. Those are what TVM itself gives a
GPU, DLight's rules: on the module as it was imported, and on our own in NHWC, activations fused.

Below, for each GPU asked for, what its own figures predict for every kernel: those are bounds, not
measurements, and a processor behind PoCL is no Mali.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from tvm_mobilenet.errors import TvmMobilenetError

TARGET = "opencl-generic"
_TOLERANCE = 1e-5
"""Of the largest output: what other orders of summing may differ by."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="opencl-") as folder:
            _compare(args, Path(folder))
    except TvmMobilenetError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="mobilenet_v1_1.0_224")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each")
    parser.add_argument("--tune-minutes", type=float, help="search for plans first")
    parser.add_argument("--logs", type=Path, help="folder of tuning logs; by default your own")
    parser.add_argument(
        "--predict", action="append", metavar="TARGET", help="GPUs; rk3399-mali unless given"
    )
    return parser.parse_args(argv)


def _compare(args: argparse.Namespace, folder: Path) -> None:
    from tvm_mobilenet.opencl.placement import OpenCLPlacement
    from tvm_mobilenet.predict import predict_model
    from tvm_mobilenet.targets import load_target
    from tvm_mobilenet.tune import tune_model
    from tvm_mobilenet.workflow import onnx_file

    placement = OpenCLPlacement(0)
    path = onnx_file(args.model, folder / "model.onnx")
    if args.tune_minutes:
        tune_model(path, target=TARGET, minutes=args.tune_minutes, logs=args.logs)
    x, wanted = _reference(path)
    runs: dict[str, Callable[[], np.ndarray]] = {
        "DLight, imported": _stock(path, placement, x, is_ours=False),
        "DLight, our NHWC": _stock(path, placement, x, is_ours=True),
    }
    computed = _ours(path, folder / "computed", placement, x, use_logs=False, logs=None)
    assert computed is not None
    runs["ours, computed"] = computed
    tuned = _ours(path, folder / "tuned", placement, x, use_logs=True, logs=args.logs)
    if tuned is not None:
        runs["ours, tuned"] = tuned
    errors = {name: _error(run, wanted) for name, run in runs.items()}
    times = _turns(runs, args.rounds)
    print(f"{args.model}, float32, batch 1, {args.rounds} rounds, on {placement.name}")
    print(f"{'schedules':<18}{'median ms':>11}{'min':>10}{'ratio':>9}{'rel. error':>12}")
    stock = [values for name, values in times.items() if name.startswith("DLight")]
    first = min(stock, key=median)
    for name, values in times.items():
        ratio = median(a / b for a, b in zip(first, values, strict=True))
        print(
            f"{name:<18}{median(values):>11.2f}{min(values):>10.2f}{ratio:>8.2f}x"
            f"{errors[name]:>12.1e}"
        )
    if "ours, tuned" in times:
        pairs = zip(times["ours, computed"], times["ours, tuned"], strict=True)
        print(f"tuned over computed: {median(a / b for a, b in pairs):.2f}x")
    else:
        print(f"no tuned plans: run `tvm-mobilenet tune {args.model} --target {TARGET}` first")
    for name in args.predict or ["rk3399-mali"]:
        _print_predictions(load_target(name), predict_model(path, target=name))


def _reference(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    x = np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)
    return x, np.asarray(session.run(None, {given.name: x})[0])


def _stock(path: Path, placement: Any, x: np.ndarray, *, is_ours: bool) -> Callable[[], np.ndarray]:
    """Return a run of the model as TVM schedules it for a GPU by itself, from our module or its."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx
    from tvm.s_tir import dlight

    from tvm_mobilenet.frontend.importer import import_onnx
    from tvm_mobilenet.frontend.pipeline import canonicalize
    from tvm_mobilenet.targets import load_target

    target = load_target(TARGET).tvm_target()
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True)
    mod = canonicalize(import_onnx(model)) if is_ours else from_onnx(model)
    with target, tvm.transform.PassContext(opt_level=3):
        mod = tvm.transform.Sequential(
            [
                relax.transform.DecomposeOpsForInference(),
                relax.transform.FoldConstant(),
                relax.transform.LegalizeOps(),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                dlight.ApplyDefaultSchedule(
                    dlight.gpu.Matmul(),
                    dlight.gpu.GEMV(),
                    dlight.gpu.Reduction(),
                    dlight.gpu.GeneralReduction(),
                    dlight.gpu.Fallback(),
                ),
            ]
        )(mod)
        built = tvm.compile(mod, target=target)
    return _runner(built.mod, placement, x)


def _ours(
    path: Path, out: Path, placement: Any, x: np.ndarray, *, use_logs: bool, logs: Path | None
) -> Callable[[], np.ndarray] | None:
    """Return a run of the model as we compile it; None where no tuned plan was found."""
    import tvm

    from tvm_mobilenet.workflow import compile_model

    artifact = compile_model(path, out=out, target=TARGET, use_logs=use_logs, logs=logs)
    if use_logs and not artifact.manifest.schedule.tuned:
        return None
    return _runner(tvm.runtime.load_module(str(artifact.library_path)), placement, x)


def _runner(library: Any, placement: Any, x: np.ndarray) -> Callable[[], np.ndarray]:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    device = placement.device()
    placement.prepare(library)
    vm = VirtualMachine(library, device)
    main_function, given = vm["main"], tvm.runtime.tensor(x, device)

    def run() -> np.ndarray:
        result = main_function(given)
        placement.wait()
        tensor = result if hasattr(result, "numpy") else result[0]
        return np.asarray(tensor.numpy())

    return run


def _error(run: Callable[[], np.ndarray], wanted: np.ndarray) -> float:
    from tvm_mobilenet.errors import ParityError

    found = run()
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not error <= _TOLERANCE:
        raise ParityError(f"an output is off by {error:.1e} of the largest; nothing was timed")
    return error


def _turns(runs: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Time each once a round, in an order shuffled anew; one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    rng = random.Random(0)
    for turn in range(rounds + 1):
        order = list(runs)
        rng.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            runs[name]()
            if turn:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return times


def _print_predictions(spec: Any, found: Sequence[Any]) -> None:
    from tvm_mobilenet.schedule.mali.predict import total_ms

    gpu = spec.gpu
    print(
        f"\npredicted, not measured, for {gpu.model}: {gpu.peak_gflops:.0f} GFLOP/s and "
        f"{gpu.bandwidth_gbs:g} GB/s at best"
    )
    print(
        f"{'kernel':<16}{'calls':>6}{'MMACs':>9}{'kB':>8}{'compute ms':>12}{'memory ms':>11}"
        f"{'bound':>9}{'registers':>11}{'threads':>9}"
    )
    for one in found:
        print(
            f"{one.kernel:<16}{one.calls:>6}{one.macs / 1e6:>9.2f}{one.bytes / 1e3:>8.0f}"
            f"{one.compute_ms:>12.3f}{one.memory_ms:>11.3f}{one.bound:>9}{one.registers:>11}"
            f"{one.threads:>9}"
        )
    print(f"no inference takes less than {total_ms(found):.2f} ms there")


if __name__ == "__main__":
    sys.exit(main())
