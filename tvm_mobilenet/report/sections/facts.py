"""What was compiled, where it ran, and which files this report was made from."""

from __future__ import annotations

from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.report.data import Cell, Column, Section, Table
from tvm_mobilenet.report.figures import plural
from tvm_mobilenet.report.forms import BoardFactsForm, MeasurementForm
from tvm_mobilenet.report.read import Records

__all__ = ["artifact_section", "devices_section", "sources_section"]

_FACT = (Column(name="fact", title=""), Column(name="value", title=""))


def artifact_section(records: Records) -> Section | None:
    """Show what each artifact's manifest says."""
    if not records.manifests:
        return None
    return Section(
        name="artifacts",
        title="Artifacts",
        lead="What the compiled folders say of themselves.",
        tables=tuple(_manifest(one) for one in records.manifests),
    )


def _manifest(one: Manifest) -> Table:
    def shapes(infos: object) -> str:
        assert isinstance(infos, tuple)
        return "; ".join(f"{i.name} {'×'.join(map(str, i.shape))} {i.dtype}" for i in infos)

    schedule = one.schedule
    rows: list[tuple[str, Cell]] = [
        ("model", one.model.name),
        ("weights", one.model.weights),
        ("weights SHA-256", one.model.weights_sha256),
        ("target", f"{one.target.name} ({one.library.machine})"),
        ("inputs", shapes(one.inputs)),
        ("outputs", shapes(one.outputs)),
        ("classes", one.model.num_classes),
        ("multiply-adds", f"{sum(layer.macs for layer in one.layers) / 1e6:,.1f} M"),
        (
            "layers",
            f"{len(one.layers)}: {schedule.computed} computed, {schedule.tuned} tuned, "
            f"{schedule.fallback} fallback",
        ),
        ("library", f"{one.library.size_bytes / 1e6:,.2f} MB"),
        ("library SHA-256", one.library.sha256),
        ("made from", f"{one.source.file}, SHA-256 {one.source.sha256}"),
        (
            "made by",
            f"tvm-mobilenet {one.versions.tvm_mobilenet}, TVM {one.versions.tvm}, "
            f"tvm-ffi {one.versions.tvm_ffi}, ONNX {one.versions.onnx}",
        ),
    ]
    return Table(
        name="artifact",
        title=f"{one.model.name} for {one.target.name}",
        columns=_FACT,
        rows=tuple(row for row in rows if row[1] is not None),
    )


def devices_section(records: Records) -> Section | None:
    """Show what is known of the machines and boards that measured."""
    tables: dict[tuple[tuple[Cell, ...], ...], Table] = {}
    for one in records.measurements:
        table = _device(one)
        tables.setdefault(table.rows, table)
    for comparison in records.comparisons:
        rows: tuple[tuple[Cell, ...], ...] = (
            ("processor", comparison.cpu),
            ("processors", comparison.processors),
            ("system", comparison.system),
        )
        title = f"Side by side, {comparison.date}"
        table = Table(name="machine", title=title, columns=_FACT, rows=rows)
        tables.setdefault(rows, table)
    if not tables:
        return None
    return Section(
        name="devices",
        title="Machines and boards",
        lead="What measured, as it described itself.",
        tables=tuple(tables.values()),
    )


def _device(one: MeasurementForm) -> Table:
    host, board = one.host, one.board
    rows: list[tuple[str, Cell]] = [
        ("processor", f"{host.cpu} ({host.machine})"),
        ("processors", host.cpus),
        ("system", host.system),
        ("governor", host.governor or "not known"),
        ("load before", host.load_average),
        ("software", ", ".join(f"{name} {version}" for name, version in one.versions.items())),
    ]
    if board is not None:
        rows.append(("board", (board.before and board.before.board) or board.name))
        rows.append(("computing on", ", ".join(map(str, board.cpus)) or "the board's choice"))
        rows.append(("rest between bursts", f"{board.cool_down_s:g} s"))
        if board.before is not None and board.before.emulated:
            rows.append(("emulated", "yes: its times mean nothing"))
        for word, facts in (("before", board.before), ("after", board.after)):
            if facts is not None:
                rows.append((word, _state(facts)))
    return Table(
        name="device",
        title=f"{one.model}, {plural(one.threads, 'thread')}, {one.date}",
        columns=_FACT,
        rows=tuple(row for row in rows if row[1] is not None),
    )


def _state(facts: BoardFactsForm) -> str:
    clock = max((cpu.cur_mhz for cpu in facts.cpus if cpu.cur_mhz), default=None)
    parts = [
        f"clock {clock:.0f} MHz" if clock else "clock not known",
        f"{facts.temperature_c:.0f} °C" if facts.temperature_c is not None else "",
        f"{facts.memory_free_mib:.0f} MiB free" if facts.memory_free_mib is not None else "",
    ]
    return ", ".join(filter(None, parts))


def sources_section(records: Records) -> Section:
    """List the records, so that what is said can be checked."""
    rows: list[tuple[Cell, ...]] = [
        (source.path, source.kind, source.date, source.sha256) for source in records.sources
    ]
    return Section(
        name="sources",
        title="Records",
        lead="Everything above was read from these files; nothing was measured for the report.",
        tables=(
            Table(
                name="sources",
                title="Files read",
                columns=(
                    Column(name="file", title="file"),
                    Column(name="kind", title="kind"),
                    Column(name="date", title="date"),
                    Column(name="sha256", title="SHA-256"),
                ),
                rows=tuple(rows),
            ),
        ),
        notes=tuple(records.notes),
    )
