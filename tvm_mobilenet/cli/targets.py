"""`tvm-mobilenet targets`, `targets show` and `targets predict`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_table, show_progress
from tvm_mobilenet.cli.options import AsJson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from tvm_mobilenet.protocols import Progress
    from tvm_mobilenet.targets import TargetSpec

_UNITS = {
    "vector_bits": "bit",
    "fma_units": "a cycle",
    "l1d_kib": "KiB",
    "l2_kib": "KiB a core",
    "l3_kib": "KiB",
    "freq_mhz": "MHz",
    "alu_vector_bits": "bit",
    "local_kib": "KiB",
    "fma_per_core": "a cycle",
    "bandwidth_gbs": "GB/s",
}


def targets(context: typer.Context, as_json: AsJson = False) -> None:
    """List what a model can be compiled for, or explain one."""
    if context.invoked_subcommand is not None:
        return
    from tvm_mobilenet.targets import list_targets

    specs = [_load(name) for name in list_targets()]
    if as_json:
        print_json(specs)
        return
    print_table(
        ("target", "instructions", "cores", "L1", "L2 a core", "L3", "what it is"),
        [
            (
                spec.name,
                spec.cpu.isa if spec.gpu is None else f"OpenCL, {spec.gpu.architecture}",
                spec.cpu.cores if spec.gpu is None else spec.gpu.cores,
                *(_caches(spec) if spec.gpu is None else ("", "", "")),
                spec.description,
            )
            for spec in specs
        ],
    )


def _caches(spec: TargetSpec) -> tuple[str, str, str]:
    cpu = spec.cpu
    l3 = f"{cpu.l3_kib} KiB" if cpu.l3_kib else ""
    return f"{cpu.l1d_kib} KiB", f"{cpu.l2_kib} KiB", l3


def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.toml", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Explain one target: every figure with its source."""
    spec = _load(name)
    if as_json:
        print_json({**spec.model_dump(mode="json"), "fingerprint": spec.fingerprint()})
        return
    print_line(f"{spec.name}: {spec.description}")
    print_table(
        ("", ""),
        [
            ("TVM target", _spelled(spec.tvm_options())),
            ("CPU's side", spec.host or "its own") if spec.gpu else ("GPU", "not used"),
            ("linked for", f"{spec.link.triple}, glibc {spec.link.glibc} or newer"),
            ("emulated as", spec.emulation.qemu_cpu if spec.emulation else "not emulated"),
            ("fingerprint", spec.fingerprint()[:16]),
        ],
    )
    if spec.gpu is not None:
        _show_figures("GPU figure", spec.gpu, spec.gpu_sources)
    _show_figures("figure", spec.cpu, spec.sources)


def _show_figures(title: str, section: BaseModel, sources: Mapping[str, str]) -> None:
    print_table(
        (title, "value", "source"),
        [
            (field, f"{value} {_UNITS.get(field, '')}".rstrip(), sources.get(field))
            for field, value in section.model_dump(mode="json").items()
        ],
    )


def _spelled(options: Mapping[str, object]) -> str:
    return " ".join(
        f"{k}=({_spelled(v)})" if isinstance(v, dict) else f"{k}={v}" for k, v in options.items()
    )


def predict(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.toml", show_default=False)],
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE.onnx", show_default=False)],
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="float32|float16",
            help="Of weights and between layers, as `compile` takes it.",
        ),
    ] = "float32",
    as_json: AsJson = False,
) -> None:
    """Say what a GPU's figures predict for each kernel of a model; nothing is measured.

    A kernel takes no less than its multiply-adds at the device's peak and its bytes at the
    bandwidth of its memory.
    """
    from tvm_mobilenet.predict import predict_model
    from tvm_mobilenet.schedule.mali.predict import total_ms

    with show_progress() as progress:
        spec = load_shown(name, progress)
        found = predict_model(model, target=spec, dtype=dtype, progress=progress)
    assert spec.gpu is not None
    if as_json:
        print_json([{**asdict(one), "ms": one.ms, "bound": one.bound} for one in found])
        return
    gpu = spec.gpu
    print_line(
        f"{model}, {dtype}, on {gpu.model}: {gpu.peak_gflops:.0f} GFLOP/s and "
        f"{gpu.bandwidth_gbs:g} GB/s at best, in float32; predicted from these, not measured"
    )
    head = ("kernel", "calls", "MMACs", "kB", "compute ms", "memory ms", "bound", "registers")
    print_table(
        (*head, "threads a core"),
        [
            (
                one.kernel,
                one.calls,
                f"{one.macs / 1e6:.2f}",
                f"{one.bytes / 1e3:.0f}",
                f"{one.compute_ms:.3f}",
                f"{one.memory_ms:.3f}",
                one.bound,
                one.registers,
                one.threads,
            )
            for one in found
        ],
    )
    print_line(f"no inference takes less than {total_ms(found):.2f} ms")


def _load(name: str) -> TargetSpec:
    with show_progress() as progress:
        return load_shown(name, progress)


def load_shown(name: str, progress: Progress) -> TargetSpec:
    """Load a target; looking at this machine takes LLVM, and so a moment."""
    from tvm_mobilenet.targets import HOST, load_target

    if name != HOST:
        return load_target(name)
    progress.start("looking at this machine")
    spec = load_target(name)
    progress.done(spec.description)
    return spec
