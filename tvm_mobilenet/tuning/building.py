"""Building one candidate into a library; runs in a worker process."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvm_mobilenet._tvm import tvm
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.targets import TargetSpec
from tvm_mobilenet.toolchain import link_kernel
from tvm_mobilenet.tuning.kernels import kernel_module
from tvm_mobilenet.tuning.records import plan_from, workload_from
from tvm_mobilenet.tuning.spills import spilled_vectors

__all__ = ["Builder"]


class Builder:
    """Answers `{workload, plan}`, or a scheduled `{module}`, with `{library, spills, seconds}`.

    The library is in base 64; `spills` is of `tvm_mobilenet.tuning.spills`, 0 on a GPU; `seconds`
    are the processor's.

    Args:
        target: what is built for, as JSON.
        folder: for files that come and go.
        compiler: the C compiler to link with, in place of a bare linker.
    """

    def __init__(self, target: str, folder: str, compiler: str | None = None) -> None:
        self._spec = TargetSpec.model_validate_json(target)
        self._target = self._spec.tvm_target()
        self._folder = Path(folder)
        self._compiler = compiler
        self._count = 0

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Build one candidate.

        Raises:
            CompileError: code generation or linking failed.
        """
        self._count += 1
        begin = time.process_time()
        if "module" in request:
            # One of the stock rules': scheduled already, and lowered as TVM lowers them.
            built = tvm.compile(tvm.ir.load_json(request["module"]), target=self._target)
        else:
            workload, plan = workload_from(request["workload"]), plan_from(request["plan"])
            with lowering():
                built = tvm.compile(kernel_module(workload, plan), target=self._target)
        spills = 0
        stem = self._folder / f"{id(self)}-{self._count}"
        object_path, library = stem.with_suffix(".o"), stem.with_suffix(".so")
        try:
            if self._spec.gpu is None:
                built.mod.write_to_file(str(object_path), "o")
                self._link(str(library), [str(object_path)])
                spills = spilled_vectors(built.mod.inspect_source("asm"))
            else:  # the code for the device lies in a module beside the host's
                built.export_library(str(library), fcompile=self._link)
            encoded = base64.b64encode(library.read_bytes()).decode()
            seconds = time.process_time() - begin
            return {"library": encoded, "spills": spills, "seconds": seconds}
        finally:
            object_path.unlink(missing_ok=True)
            library.unlink(missing_ok=True)

    def _link(self, library: str, objects: Sequence[str], **_options: Any) -> None:
        paths = [Path(name) for name in objects]
        link_kernel(paths, Path(library), self._spec, compiler=self._compiler)
