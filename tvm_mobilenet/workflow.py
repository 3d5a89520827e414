"""The stages chained: one call for what one command does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.artifact import Artifact, OutputFolder
from tvm_mobilenet.errors import UsageError, error_context
from tvm_mobilenet.manifest import (
    Description,
    ScheduleSummary,
    SourceRecord,
    TargetRecord,
    Versions,
    description_json,
)
from tvm_mobilenet.models.weight_file import describe_weights
from tvm_mobilenet.onnx_file import read_exported
from tvm_mobilenet.precision import Precision, choose_precision
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.targets import TargetSpec, load_target

if TYPE_CHECKING:
    from tvm_mobilenet.compiler import ScheduledModule
    from tvm_mobilenet.records import ExportedModel
    from tvm_mobilenet.schedule.select import PlanSource

__all__ = ["compile_model", "onnx_file"]


def compile_model(
    model: str | Path,
    *,
    out: Path | str,
    weights: Path | str | None = None,
    target: str | Path | TargetSpec = "host",
    num_classes: int | None = None,
    seed: int = 0,
    keep_onnx: bool = True,
    use_logs: bool = True,
    logs: Path | str | None = None,
    compiler: str | None = None,
    dtype: str = "float32",
    accumulate: str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a model of ours or an ONNX file into an artifact folder.

    Args:
        model: a name (`mobilenet_v1_0.5_160`), one of our weight files, which knows its model, or
            the path of an `.onnx` file.
        out: the folder to write; appears whole or not at all.
        weights: a weight file for a model of ours; None for seeded random weights.
        target: a target's name, a target file, or a loaded target.
        num_classes: for random weights; None for 1000.
        seed: of the random weights.
        keep_onnx: put the ONNX file beside the library; `verify` compares with it.
        use_logs: use recorded schedules where there are any; computed ones serve the rest.
        logs: the folder of tuning logs to use in place of the user's own.
        compiler: the C compiler to link with, in place of the target's own choice.
        dtype: of weights and of what lies between layers: float32, or float16 or bfloat16 where the
            target computes with it. Inputs and outputs stay as they are in the ONNX file.
        accumulate: of sums: float32 or float16; None for the target's own choice.
        progress: told of every stage.

    Raises:
        UsageError: the request cannot be met: model, weights, file or target.
        UnsupportedOpError: the ONNX file holds an operator that cannot be handled.
        CompileError: code generation or linking failed.
        OutputError: `out` cannot be written.
    """
    spec = target if isinstance(target, TargetSpec) else load_target(target)
    precision = choose_precision(dtype, accumulate, spec)
    name, weights, is_file = _resolve_model(model, weights)
    with error_context(model=name, target=spec.name), OutputFolder(out) as folder:
        if is_file:
            onnx_path = Path(model)
        else:
            from tvm_mobilenet.export import export_onnx

            onnx_path = folder.staging / "model.onnx"
            export_onnx(
                name,
                out=onnx_path,
                weights=weights,
                num_classes=num_classes,
                seed=seed,
                progress=progress,
            )
        return _compile_into(
            folder,
            onnx_path,
            spec,
            keep_onnx=keep_onnx,
            recorded=_recorded(spec, logs) if use_logs else None,
            compiler=compiler,
            precision=precision,
            progress=progress,
        )


def onnx_file(
    model: str | Path,
    path: Path,
    *,
    weights: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the ONNX file of a model: its own, or one made at `path`.

    Without `weights` the one that is made has random ones.

    Raises:
        UsageError: the model is not known, or its file of no use.
    """
    name, weights, is_file = _resolve_model(model, weights)
    if is_file:
        return Path(model)

    from tvm_mobilenet.export import export_onnx

    export_onnx(name, out=path, weights=weights, progress=progress)
    return path


def _recorded(target: TargetSpec, logs: Path | str | None) -> PlanSource:
    from tvm_mobilenet.tuning.recorded import RecordedPlans, read_stores

    return RecordedPlans(target, read_stores(target, logs))


def _resolve_model(
    model: str | Path, weights: Path | str | None
) -> tuple[str, Path | str | None, bool]:
    """Return (model name or ONNX path, weight file, whether it is an ONNX file)."""
    text = str(model)
    suffix = Path(text).suffix
    if suffix == ".onnx" or suffix in _WEIGHT_SUFFIXES:
        if weights is not None:
            raise UsageError(
                f"weights {weights} were given together with {text}, which holds its own; "
                "leave one of the two out"
            )
        if suffix == ".onnx":
            return text, None, True
        description = describe_weights(text)
        if description is None:
            raise UsageError(
                f"weights {text}: the file does not say which model it is for; give the model's "
                f"name, and this file with --weights"
            )
        return description.model, text, False
    if isinstance(model, Path):
        raise UsageError(f"model {text}: give a model's name, an .onnx file or a weight file")
    return text, weights, False


_WEIGHT_SUFFIXES = (".safetensors", ".pth")


def _compile_into(
    folder: OutputFolder,
    onnx_path: Path,
    target: TargetSpec,
    *,
    keep_onnx: bool,
    recorded: PlanSource | None,
    compiler: str | None,
    precision: Precision,
    progress: Progress | None,
) -> Artifact:
    exported = read_exported(onnx_path)
    descriptions: list[Description] = []

    from tvm_mobilenet.compiler import compile_onnx

    def describe(scheduled: ScheduledModule) -> str:
        descriptions.append(_description(exported, onnx_path, target, scheduled))
        return description_json(descriptions[0])

    library = folder.staging / "library.so"
    compile_onnx(
        onnx_path,
        target,
        library,
        description=describe,
        recorded=recorded,
        compiler=compiler,
        precision=precision,
        progress=progress,
    )
    return folder.commit(library, descriptions[0], onnx_path if keep_onnx else None)


def _description(
    exported: ExportedModel, onnx_path: Path, target: TargetSpec, scheduled: ScheduledModule
) -> Description:
    return Description(
        model=exported.origin,
        inputs=scheduled.inputs,
        outputs=scheduled.outputs,
        preprocessing=exported.preprocessing,
        class_names=exported.class_names,
        target=TargetRecord(
            name=target.name,
            fingerprint=target.fingerprint(),
            spec=target.model_dump(mode="json", by_alias=True, exclude_none=True),
        ),
        versions=Versions.current(),
        source=SourceRecord.of(onnx_path),
        layers=scheduled.layers,
        schedule=ScheduleSummary.of(scheduled.layers),
        dtype=scheduled.dtype,
        accumulate=scheduled.accumulate if scheduled.dtype != "float32" else None,
        float_islands=scheduled.float_islands,
    )
