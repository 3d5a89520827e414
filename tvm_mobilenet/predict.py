"""What a target's GPU can do at best with a model, by its figures: see `schedule.mali.predict`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import UsageError, error_context
from tvm_mobilenet.precision import choose_precision
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.workflow import onnx_file

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.mali.predict import KernelPrediction

__all__ = ["predict_model"]


def predict_model(
    model: str | Path,
    *,
    target: str | Path | TargetSpec,
    dtype: str = "float32",
    accumulate: str | None = None,
    progress: Progress | None = None,
) -> tuple[KernelPrediction, ...]:
    """Return what the figures of a target's GPU predict for each kernel of a model.

    Args:
        model: a name (`mobilenet_v1_0.5_160`) or the path of an `.onnx` file.
        target: a target with a GPU: its name, its file, or a loaded one.
        dtype: `float32`, or `float16` where the GPU computes with it.
        accumulate: the type of float16's sums, `float32` or `float16`; None for float32.
        progress: told of the export.

    Raises:
        UsageError: model or target is not known, or the target has no GPU, or no such arithmetic.
    """
    spec = target if isinstance(target, TargetSpec) else load_target(target)
    if spec.gpu is None:
        raise UsageError(
            f"target {spec.name}: it has no GPU; predictions are for OpenCL targets such as "
            "rk3399-mali"
        )
    precision = choose_precision(dtype, accumulate, spec)
    import onnx

    from tvm_mobilenet.frontend.importer import import_onnx
    from tvm_mobilenet.frontend.pipeline import canonicalize
    from tvm_mobilenet.onnx_file import read_exported
    from tvm_mobilenet.schedule.dispatch import select_for
    from tvm_mobilenet.schedule.mali.predict import predict_selection

    with (
        error_context(model=str(model), target=spec.name),
        tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder,
    ):
        path = onnx_file(model, Path(folder) / "model.onnx", progress=progress)
        read_exported(path)  # refuses a damaged file with one line
        graph = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True)
        mod = canonicalize(import_onnx(graph), precision.dtype)
        found = select_for(mod, spec, accumulate=precision.accumulate)
        return predict_selection(found, spec.gpu)
