"""Count what one inference retires on an AArch64 processor, ours beside other engines.

    python benchmarks/count_instructions.py                        # V1, V2 and V3, rpi4 and rpi5
    python benchmarks/count_instructions.py --dtype int8
    python benchmarks/count_instructions.py mobilenet_v1_0.5_160 --targets rpi4
    python benchmarks/count_instructions.py model.onnx --peers litert mnn --json out.json

Every engine is its own AArch64 build, run under the same emulator with the processor of the target,
on one thread, with the same ONNX file and the same input. The counts are exact and the same at
every run. They are no time: an emulator knows neither caches nor how many instructions a processor
starts in a cycle.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.absence import EngineUnavailableError
from benchmarks.agreement import DTYPES, Agreement, Reference, compute_reference
from benchmarks.arm_peers import ARM_PEERS, run_arm_peer
from benchmarks.cases import model_name, onnx_file
from benchmarks.counting import CLASSES, count_inference, counter_option
from benchmarks.engines import OURS
from benchmarks.onnx_graph import GraphError, OnnxGraph, read_graph, seeded_inputs
from tvm_mobilenet import __version__
from tvm_mobilenet.boards.sysroot import emulator_command
from tvm_mobilenet.errors import TvmMobilenetError
from tvm_mobilenet.files import new_file
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.runtime_libs import runtime_libs
from tvm_mobilenet.targets import TargetSpec, load_target

DEFAULT_MODELS = ("mobilenet_v1_1.0_224", "mobilenet_v2_1.0_224", "mobilenet_v3_large_1.0_224")
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Count:
    """One line of the table."""

    engine: str
    version: str = ""
    absence: str = ""
    agreement: Agreement | None = None
    classes: dict[str, int] = field(default_factory=dict)

    @property
    def instructions(self) -> int:
        """All classes together."""
        return sum(self.classes.values())


@dataclass(frozen=True)
class Case:
    """One model on one target."""

    name: str
    dtype: str
    graph: OnnxGraph
    x: np.ndarray
    reference: Reference
    target: TargetSpec

    @property
    def products(self) -> int:
        """Multiply-adds of one instruction, of the best that the processor has for the dtype."""
        cpu = self.target.cpu
        if self.dtype == "float32":
            return cpu.lanes("float32")
        if cpu.has_i8mm:
            return 2 * cpu.lanes("int8")  # SMMLA: four sums of eight products
        # SDOT: a product for every byte of a register; SMLAL: for half of them.
        return cpu.lanes("int8") if cpu.has_dot_product else cpu.lanes("int8") // 2

    @property
    def floor(self) -> float:
        """Multiply-add instructions that no engine can do without."""
        return self.graph.macs / self.products


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=list(DEFAULT_MODELS), metavar="MODEL|FILE.onnx"
    )
    parser.add_argument("--targets", nargs="+", default=["rpi4", "rpi5"], metavar="NAME")
    parser.add_argument("--peers", nargs="*", choices=sorted(ARM_PEERS), default=list(ARM_PEERS))
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    results = []
    try:
        with tempfile.TemporaryDirectory(prefix="count-") as scratch:
            for model in args.models:
                onnx = onnx_file(model, Path(scratch), args.dtype)
                for target in args.targets:
                    case = prepare(model, onnx, load_target(target), args.dtype)
                    counts = [count_ours(case), *(count_peer(case, p) for p in args.peers)]
                    print(render(case, counts), flush=True)
                    results.append(describe(case, counts))
            if args.json:
                with new_file(args.json) as partial:
                    partial.write_text(json.dumps({"results": results}, indent=1) + "\n")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (TvmMobilenetError, EngineUnavailableError, OSError) as err:
        print(f"count_instructions: {err}", file=sys.stderr)
        return err.exit_code if isinstance(err, TvmMobilenetError) else 1
    return 0


def prepare(model: str, onnx: Path, target: TargetSpec, dtype: str = "float32") -> Case:
    """Read the model and compute what its output should be, with ONNX Runtime on this machine.

    Raises:
        TvmMobilenetError: the file cannot be counted, or the target not be emulated here.
    """
    emulator_command(target)  # asks for all that it needs
    graph = read_graph(onnx)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise GraphError(
            f"{onnx}: {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "only models with one of each are counted"
        )
    inputs = seeded_inputs(graph)
    (x,) = inputs.values()
    reference = compute_reference(graph, inputs, dtype)
    return Case(model_name(model), dtype, graph, x, reference, target)


def count_ours(case: Case) -> Count:
    """Compile the model for the target and count it."""
    from tvm_mobilenet.compiler import compile_onnx

    print(f"counting {OURS} on {case.name} for {case.target.name}", file=sys.stderr)
    libs = runtime_libs(case.target)
    with tempfile.TemporaryDirectory(prefix="count-") as scratch:
        folder = Path(scratch)
        try:
            compile_onnx(case.graph.path, case.target, folder / "model.so")
        except TvmMobilenetError as err:
            return Count(OURS, __version__, absence=f"not compiled: {err}")
        program = folder / "guest_ours"
        build_native(
            [_HERE / "guest_ours.c"],
            program,
            case.target,
            kind="program",
            include=libs.include,
            libraries=[libs.tvm_runtime, libs.tvm_ffi],
            rpath=f"{libs.tvm_runtime.parent}:{libs.tvm_ffi.parent}",
        )
        case.x.tofile(folder / "input")
        emulator = emulator_command(case.target)
        command = [*emulator[:1], *counter_option(folder), *emulator[1:], str(program)]
        command += [str(folder / name) for name in ("model.so", "input", "output")]
        try:
            classes = count_inference([*command, *map(str, case.x.shape)], folder, {})
        except EngineUnavailableError as err:
            return Count(OURS, __version__, absence=str(err))
        output = np.fromfile(folder / "output", np.float32)
    return _checked(case, Count(OURS, __version__, classes=classes), output)


def count_peer(case: Case, peer: str) -> Count:
    """Count another engine's AArch64 wheel, or say why that cannot be."""
    print(f"counting {peer} on {case.name} for {case.target.name}", file=sys.stderr)
    version = ARM_PEERS[peer].partition("==")[2]
    emulation = case.target.emulation
    assert emulation is not None  # `prepare` has asked
    try:
        classes, output = run_arm_peer(peer, case.graph, case.x, emulation.qemu_cpu, case.dtype)
    except (EngineUnavailableError, GraphError) as err:
        return Count(peer, version, absence=str(err))
    return _checked(case, Count(peer, version, classes=classes), output)


def _checked(case: Case, count: Count, output: np.ndarray) -> Count:
    (exact,) = case.reference.outputs
    if output.size != exact.size:
        return Count(count.engine, count.version, absence=f"its output has {output.size} numbers")
    found = case.reference.judge([output.reshape(exact.shape)])
    if found.failure:
        return Count(count.engine, count.version, f"its {found.failure}", found)
    return Count(count.engine, count.version, "", found, count.classes)


def render(case: Case, counts: Sequence[Count]) -> str:
    """Write the table of one model on one target, millions of instructions."""
    assert case.target.emulation is not None
    cpu = case.target.emulation.qemu_cpu
    titles = "".join(f"{name:>11}" for name in CLASSES)
    parity = f"{'steps':>7}{'max':>5}" if case.dtype == "int8" else f"{'rel. L2':>9}"
    lines = [
        f"\n{case.name}, {case.target.name} ({cpu}), {case.dtype}, 1 thread; "
        f"multiply-adds / {case.products} = {case.floor / 1e6:.1f} M",
        f"{'engine':14}{'version':>14}{'M insns':>9}{'ratio':>7}{titles}{parity}",
    ]
    for count in counts:
        begin = f"{count.engine:14}{count.version:>14}"
        if count.absence:
            lines.append(f"{begin}  absent: {count.absence}")
            continue
        shares = "".join(f"{count.classes[name] / 1e6:11.2f}" for name in CLASSES)
        ratio = count.instructions / case.floor
        lines.append(f"{begin}{count.instructions / 1e6:9.2f}{ratio:7.3f}{shares}{_parity(count)}")
    lines += [
        f"  note: {c.engine}: {c.agreement.remark}"
        for c in counts
        if c.agreement and c.agreement.remark
    ]
    return "\n".join(lines)


def _parity(count: Count) -> str:
    assert count.agreement is not None  # what was counted was judged
    if count.agreement.steps_mean is None:
        return f"{count.agreement.relative_l2:9.1e}"
    return f"{count.agreement.steps_mean:7.1f}{count.agreement.steps_max:5.0f}"


def describe(case: Case, counts: Sequence[Count]) -> dict[str, object]:
    """Return one table as JSON-ready values."""
    return {
        "model": case.name,
        "target": case.target.name,
        "dtype": case.dtype,
        "macs": case.graph.macs,
        "floor": case.floor,
        "engines": [asdict(count) | {"instructions": count.instructions} for count in counts],
    }


if __name__ == "__main__":
    sys.exit(main())
