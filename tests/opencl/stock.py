"""Artifacts for OpenCL whose kernels have TVM's own default schedules: none of ours is in them."""

from __future__ import annotations

from pathlib import Path

import onnx

from tvm_mobilenet import compiler
from tvm_mobilenet._tvm import relax, tvm
from tvm_mobilenet.artifact import Artifact, OutputFolder
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.pipeline import canonicalize
from tvm_mobilenet.manifest import (
    Description,
    ScheduleSummary,
    SourceRecord,
    TargetRecord,
    Versions,
    description_json,
)
from tvm_mobilenet.onnx_file import read_exported
from tvm_mobilenet.records import LayerRecord
from tvm_mobilenet.targets import TargetSpec
from tvm_mobilenet.toolchain import make_fcompile


def compile_stock(onnx_path: Path, target: TargetSpec, out: Path) -> Artifact:
    """Compile a model for an OpenCL target as TVM does it where nothing else is said (DLight)."""
    from tvm.s_tir import dlight

    model = onnx.shape_inference.infer_shapes(onnx.load(str(onnx_path)), data_prop=True)
    exported = read_exported(onnx_path)
    lower = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        relax.transform.RewriteDataflowReshape(),
        dlight.ApplyDefaultSchedule(
            dlight.gpu.Matmul(),
            dlight.gpu.GEMV(),
            dlight.gpu.Reduction(),
            dlight.gpu.GeneralReduction(),
            dlight.gpu.Fallback(),
        ),
    ]
    with target.tvm_target():
        mod = tvm.transform.Sequential(lower)(canonicalize(import_onnx(model)))
    layers = _layers(mod)
    description = Description(
        model=exported.origin,
        inputs=exported.inputs,
        outputs=exported.outputs,
        preprocessing=exported.preprocessing,
        class_names=exported.class_names,
        target=TargetRecord(
            name=target.name,
            fingerprint=target.fingerprint(),
            spec=target.model_dump(mode="json", by_alias=True, exclude_none=True),
        ),
        versions=Versions.current(),
        source=SourceRecord.of(onnx_path),
        layers=layers,
        schedule=ScheduleSummary.of(layers),
    )
    mod = compiler._with_description(mod, description_json(description))
    with OutputFolder(out) as folder:
        library = folder.staging / "library.so"
        executable = _build(mod, target)
        executable.export_library(str(library), fcompile=make_fcompile(target))
        return folder.commit(library, description, onnx_path)


def _build(mod, target: TargetSpec):
    # Not within `emit.lowering`: DLight's stages in local memory have to stay where it puts them.
    return tvm.compile(mod, target=target.tvm_target(), relax_pipeline=compiler.vm_pipeline())


def _layers(mod) -> tuple[LayerRecord, ...]:
    names = [
        binding.value.args[0].name_hint
        for block in mod["main"].body.blocks
        for binding in block.bindings
        if getattr(getattr(binding.value, "op", None), "name", "") == "relax.call_tir"
    ]
    return tuple(
        LayerRecord(
            index=index,
            kernel=name,
            family="fallback",
            tensor=None,
            onnx_nodes=(),
            shape=(),
            layout="any",
            macs=0,
            bytes=0,
            origin="fallback",
            schedule={},
        )
        for index, name in enumerate(names)
    )
