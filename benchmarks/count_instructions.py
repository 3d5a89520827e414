"""Count what one inference retires on an AArch64 processor, ours beside other engines.

    python benchmarks/count_instructions.py                        # two models, rpi4 and rpi3
    python benchmarks/count_instructions.py mobilenet_v1_0.5_160 --targets rpi4
    python benchmarks/count_instructions.py model.onnx --peers ncnn mnn onnxruntime --json out.json

Every engine is its own AArch64 build, run under the same emulator with the processor of the target,
on one thread, with the same ONNX file and the same input. The counts are exact and the same at
every run. They are no time: an emulator knows neither caches nor how many instructions a processor
starts in a cycle.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.absence import EngineUnavailableError
from benchmarks.arm_python import ArmPython, arm_python, host_wheel
from benchmarks.engines import OURS
from benchmarks.mnn_convert import convert_mnn
from benchmarks.ncnn_convert import convert
from benchmarks.onnx_graph import GraphError, OnnxGraph, read_graph, seeded_inputs
from tvm_mobilenet import __version__
from tvm_mobilenet.boards.emulator import instruction_counter
from tvm_mobilenet.boards.sysroot import emulator_command
from tvm_mobilenet.errors import TvmMobilenetError
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.runtime_libs import runtime_libs
from tvm_mobilenet.targets import TargetSpec, load_target

if TYPE_CHECKING:
    import onnxruntime

DEFAULT_MODELS = ("mobilenet_v1_1.0_224", "mobilenet_v1_0.25_128")
PEERS = {"ncnn": "ncnn==1.0.20261020", "mnn": "MNN==3.6.1", "onnxruntime": "onnxruntime==1.32.0"}
_NUMPY = "numpy==2.4.6"
CLASSES = ("fma", "simd", "load_store", "branch", "other")
PARITY_LIMIT = 1e-4
"""Relative L2 distance to ONNX Runtime's output; the same as in `compare.py`."""
_RUN_S = 900
_RECORD = struct.Struct(f"<{2 + len(CLASSES)}Q")
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Count:
    """One line of the table."""

    engine: str
    version: str = ""
    absence: str = ""
    error_l2: float = 0.0
    classes: dict[str, int] = field(default_factory=dict)

    @property
    def instructions(self) -> int:
        """All classes together."""
        return sum(self.classes.values())


@dataclass(frozen=True)
class Case:
    """One model on one target."""

    name: str
    onnx: Path
    graph: OnnxGraph
    x: np.ndarray
    reference: np.ndarray
    target: TargetSpec

    @property
    def floor(self) -> float:
        """Multiply-add instructions that no engine can do without."""
        return self.graph.macs / self.target.cpu.lanes("float32")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=list(DEFAULT_MODELS), metavar="MODEL|FILE.onnx"
    )
    parser.add_argument("--targets", nargs="+", default=["rpi4", "rpi3"], metavar="NAME")
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=["mnn", "ncnn"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    results = []
    try:
        with tempfile.TemporaryDirectory(prefix="count-") as scratch:
            for model in args.models:
                onnx = onnx_of(model, Path(scratch))
                for target in args.targets:
                    case = prepare(model, onnx, load_target(target))
                    counts = [count_ours(case), *(count_peer(case, p) for p in args.peers)]
                    print(render(case, counts), flush=True)
                    results.append(describe(case, counts))
            if args.json:
                args.json.write_text(json.dumps({"results": results}, indent=1) + "\n")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (TvmMobilenetError, EngineUnavailableError, OSError) as err:
        print(f"count_instructions: {err}", file=sys.stderr)
        return err.exit_code if isinstance(err, TvmMobilenetError) else 1
    return 0


def onnx_of(model: str, folder: Path) -> Path:
    if model.endswith(".onnx"):
        if not (path := Path(model)).is_file():
            raise GraphError(f"{path}: no such file")
        return path
    from tvm_mobilenet.export import export_onnx

    print(f"exporting {model} with random weights (seed 0)", file=sys.stderr)
    return Path(export_onnx(model, out=folder / f"{model}.onnx").path)


def prepare(model: str, onnx: Path, target: TargetSpec) -> Case:
    """Read the model and compute what its output should be, with ONNX Runtime on this machine."""
    graph = read_graph(onnx)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise GraphError(
            f"{onnx}: {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "only models with one of each are counted"
        )
    (x,) = seeded_inputs(graph).values()
    (reference,) = _session(onnx).run(None, {graph.inputs[0].name: x})
    name = Path(model).stem if model.endswith(".onnx") else model
    return Case(name, onnx, graph, x, np.asarray(reference), target)


def _session(onnx: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])


def count_ours(case: Case) -> Count:
    """Compile the model for the target and count it."""
    from tvm_mobilenet.compiler import compile_onnx

    print(f"counting {OURS} on {case.name} for {case.target.name}", file=sys.stderr)
    libs = runtime_libs(case.target)
    with tempfile.TemporaryDirectory(prefix="count-") as scratch:
        folder = Path(scratch)
        compile_onnx(case.onnx, case.target, folder / "model.so")
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
        command = [*emulator[:1], *_plugin(folder), *emulator[1:], str(program)]
        command += [str(folder / name) for name in ("model.so", "input", "output")]
        classes = _counted([*command, *map(str, case.x.shape)], folder, {})
        output = np.fromfile(folder / "output", np.float32)
    return _checked(case, Count(OURS, __version__, classes=classes), output)


def count_peer(case: Case, peer: str) -> Count:
    """Count another engine's AArch64 wheel, or say why that cannot be."""
    print(f"counting {peer} on {case.name} for {case.target.name}", file=sys.stderr)
    version = PEERS[peer].partition("==")[2]
    try:
        python = arm_python()
        site = python.site([_NUMPY, PEERS[peer]])
        with tempfile.TemporaryDirectory(prefix="count-") as scratch:
            classes, output = _run_peer(case, peer, python, site, Path(scratch))
    except (EngineUnavailableError, GraphError) as err:
        return Count(peer, version, absence=str(err))
    return _checked(case, Count(peer, version, classes=classes), output)


def _run_peer(
    case: Case, peer: str, python: ArmPython, site: Path, folder: Path
) -> tuple[dict[str, int], np.ndarray]:
    names = [case.graph.inputs[0].name, case.graph.outputs[0].name]
    models = [case.onnx]
    if peer == "ncnn":
        network = convert(case.graph)
        models = list(network.write(folder / "net"))
        names = [network.inputs[names[0]], network.outputs[names[1]]]
    elif peer == "mnn":
        models = [convert_mnn(case.onnx, folder / "net.mnn", site=host_wheel(PEERS["mnn"]))]
    np.save(folder / "input.npy", case.x)
    emulation = case.target.emulation
    assert emulation is not None  # ours was counted before, which asks for it
    command = python.command(emulation.qemu_cpu, _plugin(folder))
    command += [str(_HERE / "guest_peer.py"), peer, *map(str, models)]
    command += [str(folder / "input.npy"), str(folder / "output.npy"), *names]
    classes = _counted(command, folder, {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"})
    return classes, np.load(folder / "output.npy")


def _plugin(folder: Path) -> list[str]:
    return ["-plugin", f"{instruction_counter()},dir={folder}"]


def _counted(command: Sequence[str], folder: Path, environment: dict[str, str]) -> dict[str, int]:
    """Run a program that marks one inference, then three; return the half of their difference."""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_RUN_S,
        # Nothing of this machine's environment: its libraries are of another architecture.
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
    )
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineUnavailableError(
            f"under the emulator it ended with {result.returncode}: {said[-1]}"
        )
    files = sorted(folder.glob("*.counts"))
    if len(files) != 1:
        raise EngineUnavailableError(f"{len(files)} files of counts were written, expected is one")
    return inference_classes(files[0].read_bytes())


def inference_classes(records: bytes) -> dict[str, int]:
    """Return the instructions of one inference by class from a counter's file.

    Its records are begin and end of one inference (slot 1) and of three (slot 2).
    """
    found = list(_RECORD.iter_unpack(records))
    marks = [record[:2] for record in found]
    if marks != [(1, 1), (2, 1), (1, 2), (2, 2)]:
        raise EngineUnavailableError(f"the marks are {marks}, expected is a pair for slots 1 and 2")
    values = [np.array(record[2:], np.int64) for record in found]
    per_inference = ((values[3] - values[2]) - (values[1] - values[0])) // 2
    return dict(zip(CLASSES, map(int, per_inference), strict=True))


def _checked(case: Case, count: Count, output: np.ndarray) -> Count:
    exact = case.reference.astype(np.float64).reshape(-1)
    if output.size != exact.size:
        return Count(count.engine, count.version, absence=f"its output has {output.size} numbers")
    error = float(np.linalg.norm(output.reshape(-1) - exact) / np.linalg.norm(exact))
    if not error <= PARITY_LIMIT:
        reason = f"its output differs from ONNX Runtime's: relative L2 {error:.1e}"
        return Count(count.engine, count.version, absence=reason)
    return Count(count.engine, count.version, error_l2=error, classes=count.classes)


def render(case: Case, counts: Sequence[Count]) -> str:
    """Write the table of one model on one target, millions of instructions."""
    assert case.target.emulation is not None
    head = (
        f"\n{case.name}, {case.target.name} ({case.target.emulation.qemu_cpu}), float32, 1 thread"
    )
    lines = [
        f"{head}; multiply-adds / {case.target.cpu.lanes('float32')} = {case.floor / 1e6:.1f} M"
    ]
    titles = "".join(f"{name:>11}" for name in CLASSES)
    lines.append(f"{'engine':14}{'version':>14}{'M insns':>9}{'ratio':>7}{titles}{'rel. L2':>9}")
    for count in counts:
        begin = f"{count.engine:14}{count.version:>14}"
        if count.absence:
            lines.append(f"{begin}  absent: {count.absence}")
            continue
        shares = "".join(f"{count.classes[name] / 1e6:11.2f}" for name in CLASSES)
        ratio = count.instructions / case.floor
        lines.append(
            f"{begin}{count.instructions / 1e6:9.2f}{ratio:7.3f}{shares}{count.error_l2:9.1e}"
        )
    return "\n".join(lines)


def describe(case: Case, counts: Sequence[Count]) -> dict[str, object]:
    """Return one table as JSON-ready values."""
    return {
        "model": case.name,
        "target": case.target.name,
        "macs": case.graph.macs,
        "engines": [asdict(count) | {"instructions": count.instructions} for count in counts],
    }


if __name__ == "__main__":
    sys.exit(main())
