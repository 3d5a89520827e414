"""In which types a model is stored and summed, and which targets can do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from tvm_mobilenet.errors import SpecError

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["ACCUMULATORS", "DTYPES", "Accumulate", "Dtype", "Precision", "choose_precision"]

Dtype = Literal["float32", "float16", "bfloat16"]
Accumulate = Literal["float32", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
ACCUMULATORS: tuple[Accumulate, ...] = get_args(Accumulate)


@dataclass(frozen=True, slots=True)
class Precision:
    """The types of a float model."""

    dtype: Dtype = "float32"
    """Of weights and of what lies between layers."""
    accumulate: Accumulate = "float32"
    """Of sums of products. Means over the pixels are summed in float32 whatever it says."""


def choose_precision(dtype: str, accumulate: str | None, target: TargetSpec) -> Precision:
    """Return the types that were asked for, if the target computes with them.

    Args:
        dtype: one of `DTYPES`.
        accumulate: one of `ACCUMULATORS`, or None for the target's own choice: float16 where a CPU
            multiplies and adds float16 (its instruction has no wider sum), float32 elsewhere.
        target: what is compiled for.

    Raises:
        SpecError: another name, or the target has no arithmetic for it.
    """
    if dtype not in DTYPES:
        raise SpecError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if accumulate is not None and accumulate not in ACCUMULATORS:
        raise SpecError(f"accumulate {accumulate!r}: choose one of {', '.join(ACCUMULATORS)}")
    if accumulate == "float16" and dtype != "float16":
        raise SpecError(
            f"accumulate float16 with dtype {dtype}: sums would be narrower than what is summed; "
            "choose --dtype float16, or --accumulate float32"
        )
    if dtype == "float32":
        return Precision()
    missing = _missing(dtype, target)
    if missing is not None:
        raise SpecError(
            f"dtype {dtype}: target {target.name} has no arithmetic on it ({missing}); choose "
            "--dtype float32, quantize the model to int8, or choose a target that has it"
        )
    if accumulate is None:
        is_cpu_half = dtype == "float16" and target.gpu is None
        accumulate = "float16" if is_cpu_half else "float32"
    return Precision(cast(Dtype, dtype), cast(Accumulate, accumulate))


def _missing(dtype: str, target: TargetSpec) -> str | None:
    """Return which figure of a target says that it lacks a type, or None."""
    if target.gpu is not None:
        if dtype == "bfloat16":
            return "OpenCL has no bfloat16"
        return None if target.gpu.has_fp16 else "gpu.has_fp16 is false"
    if dtype == "float16":
        return None if target.cpu.has_fp16 else "cpu.has_fp16 is false"
    return None if target.cpu.has_bf16 else "cpu.has_bf16 is false"
