"""`tvm-mobilenet targets` and `targets show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_table, show_progress
from tvm_mobilenet.cli.options import AsJson

if TYPE_CHECKING:
    from tvm_mobilenet.protocols import Progress
    from tvm_mobilenet.targets import TargetSpec

_UNITS = {
    "vector_bits": "bit",
    "fma_units": "a cycle",
    "l1d_kib": "KiB",
    "l2_kib": "KiB a core",
    "l3_kib": "KiB",
    "freq_mhz": "MHz",
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
                spec.cpu.isa,
                spec.cpu.cores,
                f"{spec.cpu.l1d_kib} KiB",
                f"{spec.cpu.l2_kib} KiB",
                f"{spec.cpu.l3_kib} KiB" if spec.cpu.l3_kib else "",
                spec.description,
            )
            for spec in specs
        ],
    )


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
            ("TVM target", " ".join(f"{k}={v}" for k, v in spec.tvm_options().items())),
            ("linked for", f"{spec.link.triple}, glibc {spec.link.glibc} or newer"),
            ("emulated as", spec.emulation.qemu_cpu if spec.emulation else "not emulated"),
            ("fingerprint", spec.fingerprint()[:16]),
        ],
    )
    print_table(
        ("figure", "value", "source"),
        [
            (field, f"{value} {_UNITS.get(field, '')}".rstrip(), spec.sources.get(field))
            for field, value in spec.cpu.model_dump(mode="json").items()
        ],
    )


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
