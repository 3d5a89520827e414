"""The rewrites between import and kernel selection. Read downwards, it is their order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.errors import PassError, TvmMobilenetError, UsageError
from tvm_mobilenet.frontend.passes.fold_batch_norm import fold_batch_norm
from tvm_mobilenet.frontend.passes.fold_padding import fold_padding
from tvm_mobilenet.frontend.passes.half_precision import Half, store_in_half
from tvm_mobilenet.frontend.passes.hard_activations import spell_hard_activations
from tvm_mobilenet.frontend.passes.integer import integerize
from tvm_mobilenet.frontend.passes.islands import is_integer
from tvm_mobilenet.frontend.passes.simplify_resize import simplify_resize
from tvm_mobilenet.frontend.passes.simplify_transposes import simplify_transposes
from tvm_mobilenet.frontend.passes.split_phases import split_phases
from tvm_mobilenet.frontend.passes.trim_taps import trim_taps

if TYPE_CHECKING:
    from tvm_mobilenet.precision import Dtype

__all__ = ["PHASES", "canonicalize"]

logger = logging.getLogger(__name__)


def _to_nhwc(mod: IRModule) -> IRModule:
    """Lay feature maps out as NHWC and convolution weights as OHWI."""
    return relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})(mod)


PHASES: tuple[tuple[str, Callable[[IRModule], IRModule]], ...] = (
    ("fold padding", fold_padding),
    ("trim taps", trim_taps),
    ("simplify resizing", simplify_resize),
    ("spell hard activations", spell_hard_activations),
    ("compute in integers", integerize),
    ("fold batch norm", fold_batch_norm),
    ("lay out as NHWC", _to_nhwc),
    ("simplify transposes", simplify_transposes),
    ("split atrous integers into phases", split_phases),
)
"""ReLU and its like are plain `maximum` and `minimum` here already: the importer writes them so."""


def _store_as(dtype: Half) -> tuple[str, Callable[[IRModule], IRModule]]:
    """Return the last rewrite, behind those that compute with constants."""

    def rewrite(mod: IRModule) -> IRModule:
        if is_integer(mod):
            raise UsageError(
                f"dtype {dtype}: the model is quantized, and is compiled to int8; leave --dtype "
                "out, or compile the float model that it was made of"
            )
        return store_in_half(mod, dtype)

    return f"store as {dtype}", rewrite


def canonicalize(mod: IRModule, dtype: Dtype = "float32") -> IRModule:
    """Bring an imported module into the form that kernels are selected from.

    Args:
        mod: the module, as imported.
        dtype: what a float model is stored in between its layers.

    Raises:
        UsageError: a quantized model, or one beyond the numbers of `dtype`, in another type.
        PassError: a rewrite failed; names it and those that ran before it.
    """
    done: list[str] = []
    phases = PHASES if dtype == "float32" else (*PHASES, _store_as(dtype))
    for name, rewrite in phases:
        try:
            mod = rewrite(mod)
        except TvmMobilenetError:
            raise
        except Exception as err:
            before = ", ".join(done) or "none"
            raise PassError(f"rewrite {name!r} failed (done before it: {before}): {err}") from err
        done.append(name)
        logger.info("%s", name)
    return mod
