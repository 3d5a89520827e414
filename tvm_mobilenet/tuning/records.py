"""What a line of a tuning log holds: one candidate that was measured, or what a search has spent.

A line is one JSON object, `{"check": ..., "record": {...}}`; `check` is over the record's canonical
spelling, so that a line that was altered or cut short is told from one that is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from tvm_mobilenet.records import Record
from tvm_mobilenet.schedule.cascade import CascadePlan
from tvm_mobilenet.schedule.convolution import ConvPlan
from tvm_mobilenet.schedule.depthwise import DepthwisePlan
from tvm_mobilenet.schedule.gated import GatedPlan
from tvm_mobilenet.schedule.integer.depthwise import IntegerDepthwisePlan
from tvm_mobilenet.schedule.integer.elementwise import ElementwisePlan
from tvm_mobilenet.schedule.integer.matmul import IntegerMatmulPlan
from tvm_mobilenet.schedule.integer.workload import (
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    QuantizeWorkload,
)
from tvm_mobilenet.schedule.mali.convolution import GpuConvPlan
from tvm_mobilenet.schedule.mali.depthwise import GpuDepthwisePlan
from tvm_mobilenet.schedule.mali.families import GpuPlan
from tvm_mobilenet.schedule.mali.pool import GpuPoolPlan
from tvm_mobilenet.schedule.mali.product import GpuProductPlan
from tvm_mobilenet.schedule.matmul import MatmulPlan
from tvm_mobilenet.schedule.pool import PoolPlan
from tvm_mobilenet.schedule.separable import ApartPlan, SeparablePlan
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.tuning.stock_plan import StockPlan

__all__ = [
    "FORMAT_VERSION",
    "WRITER_VERSION",
    "Conditions",
    "LineError",
    "Plan",
    "SessionRecord",
    "TrialRecord",
    "canonical",
    "decode_line",
    "encode_line",
    "layout_of",
    "plan_from",
    "plan_to_json",
    "workload_from",
    "workload_to_json",
]

FORMAT_VERSION: Literal[1] = 1
# History: 1, the first.

WRITER_VERSION = 2
"""Raised when a change of the kernel writers makes figures of the same plan incomparable.

A stale figure costs speed, never correctness: kernels are written anew from the plan.
History: 1, the first; 2, tiles of packed rows in assembly.
"""

Plan = (
    MatmulPlan
    | DepthwisePlan
    | ConvPlan
    | PoolPlan
    | SeparablePlan
    | ApartPlan
    | GatedPlan
    | CascadePlan
    | GpuPlan
    | IntegerMatmulPlan
    | IntegerDepthwisePlan
    | ElementwisePlan
    | StockPlan
)

_WORKLOADS: dict[str, type] = {
    "matmul": MatmulWorkload,
    "conv": ConvWorkload,
    "separable": SeparableWorkload,
    "pool": PoolWorkload,
    "gated": GatedWorkload,
    "integer-matmul": IntegerMatmulWorkload,
    "integer-conv": IntegerConvWorkload,
    "integer-pool": IntegerPoolWorkload,
    "integer-add": IntegerAddWorkload,
    "quantize": QuantizeWorkload,
    "cascade": CascadeWorkload,
}
_PLANS: dict[str, type] = {
    "matmul": MatmulPlan,
    "depthwise": DepthwisePlan,
    "conv": ConvPlan,
    "pool": PoolPlan,
    "separable": SeparablePlan,
    "apart": ApartPlan,
    "gpu-product": GpuProductPlan,
    "gpu-depthwise": GpuDepthwisePlan,
    "gpu-conv": GpuConvPlan,
    "gpu-pool": GpuPoolPlan,
    "gated": GatedPlan,
    "integer-matmul": IntegerMatmulPlan,
    "integer-depthwise": IntegerDepthwisePlan,
    "elementwise": ElementwisePlan,
    "cascade": CascadePlan,
    "stock": StockPlan,
}
_SHORT = frozenset({"integer-matmul", "integer-conv", "integer-depthwise", "integer-pool"})
_SHORT |= {"integer-add", "quantize", "elementwise"}
"""Kinds of which what is at its default is not spelled: a field that comes later, and whose default
is what was before, leaves their records as they are."""


class LineError(ValueError):
    """A line, or what it holds, cannot be used; the text is the reason."""


class Conditions(Record):
    """Where and how a figure was measured."""

    device: str
    """Name of the processor."""
    threads: int = Field(ge=1)
    governor: str | None
    """How the clock is chosen; None where the machine does not say."""
    cache: Literal["cold", "warm"]
    """`cold`: the weights come from beyond the core's caches, as in a whole model."""
    repeats: int = Field(ge=0)
    """Calls that were timed."""
    is_tight: bool
    """Whether they agreed well enough before time was up."""
    is_emulated: bool
    cost: Literal["latency", "instructions"]
    """What `TrialRecord.cost` counts: milliseconds, or millions of weighted instructions."""
    weights: dict[str, float] | None = None
    """Of the instructions, by class."""
    clock_mhz: float | None = None
    """Of the device's fastest processor, right after."""
    temperature_c: float | None = None
    throttled: str = ""
    """What suggests that the device lowered its clock; empty where nothing does."""
    date: str
    """UTC, ISO 8601."""
    tvm: str
    tvm_mobilenet: str


class TrialRecord(Record):
    """One candidate: what was computed, how, and what it took."""

    kind: Literal["trial"] = "trial"
    format_version: Literal[1] = FORMAT_VERSION
    target: str
    """Name of the target, for people; `fingerprint` is what counts."""
    fingerprint: str
    family: str
    workload: dict[str, Any]
    dtype: str
    layout: str
    writer: int
    """`WRITER_VERSION` of the kernel writers."""
    plan: dict[str, Any]
    verdict: Literal["measured", "accepted", "rejected"]
    """`accepted`: it beat what was best before in two contests, or stood against all. The only
    kind that `compile` takes."""
    cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of one call; None where it was rejected before it could be measured."""
    ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Its cost over that of the computed plan, taken turn by turn; what was accepted has one."""
    error: float | None = None
    """Largest difference to the reference that its output showed."""
    counts: dict[str, int] | None = None
    """Retired instructions of one call by class, where they were counted."""
    note: str = ""
    """Why it was rejected."""
    conditions: Conditions


class SessionRecord(Record):
    """What a search has spent since its last such record."""

    kind: Literal["session"] = "session"
    format_version: Literal[1] = FORMAT_VERSION
    session: str
    """Digest of the target, the tasks and the conditions: equal requests share one budget."""
    model: str
    fingerprint: str
    trials: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    date: str


AnyRecord = TrialRecord | SessionRecord
_ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(
    Annotated[TrialRecord | SessionRecord, Field(discriminator="kind")]
)


def canonical(value: Any) -> str:
    """Return the one JSON spelling of plain data: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode_line(record: AnyRecord) -> bytes:
    """Return a record as a whole line, its end included."""
    body = record.model_dump(mode="json")
    return canonical({"check": _check(body), "record": body}).encode() + b"\n"


def decode_line(line: bytes) -> AnyRecord:
    """Return the record that a line holds.

    Raises:
        LineError: the line is cut short, altered, or of another format.
    """
    try:
        content = json.loads(line)
    except ValueError:
        raise LineError("it is cut short or damaged") from None
    if not isinstance(content, dict) or set(content) != {"check", "record"}:
        raise LineError("it is no line of a tuning log")
    body = content["record"]
    try:
        if content["check"] != _check(body):
            raise LineError("it was altered by hand: its check does not fit what it says")
        if isinstance(body, dict) and body.get("format_version") != FORMAT_VERSION:
            raise LineError(
                f"its format_version is {body.get('format_version')!r}; this version reads "
                f"{FORMAT_VERSION}"
            )
        return _ADAPTER.validate_python(body)
    except ValidationError as err:
        problem = err.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise LineError(f"{where} is not allowed: {problem['msg']}") from None
    except LineError:
        raise
    except ValueError as err:
        raise LineError(f"it is no line of a tuning log: {err}") from None


def _check(body: Any) -> str:
    return hashlib.sha256(canonical(body).encode()).hexdigest()[:16]


def workload_to_json(workload: TunableWorkload) -> dict[str, Any]:
    """Return a workload as plain data with its kind; infinite bounds are spelled `inf`, `-inf`."""
    return _tagged(_WORKLOADS, workload)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data with its kind."""
    return _tagged(_PLANS, plan)


def workload_from(data: dict[str, Any]) -> TunableWorkload:
    """Return the workload that `workload_to_json` spelled.

    Raises:
        LineError: it is none.
    """
    workload: TunableWorkload = _untagged(_WORKLOADS, data, "workload")
    return workload


def plan_from(data: dict[str, Any]) -> Plan:
    """Return the plan that `plan_to_json` spelled.

    Raises:
        LineError: it is none of this version's.
    """
    plan: Plan = _untagged(_PLANS, data, "plan")
    return plan


def layout_of(workload: TunableWorkload) -> str:
    """Return the layout of a workload's input."""
    if isinstance(workload, CascadeWorkload):
        workload = workload.stages[0]
    return workload.input_layout if isinstance(workload, ConvWorkload) else "NHWC"


def _tagged(kinds: dict[str, type], value: Any) -> dict[str, Any]:
    kind = next(name for name, cls in kinds.items() if type(value) is cls)
    return {"kind": kind, **_plain(_shortened(value) if kind in _SHORT else value)}


def _shortened(value: Any) -> Any:
    """Return a dataclass as plain data, without the fields that are at their default.

    A field that is called as the tag is has a line below it.
    """
    if not is_dataclass(value):
        return value
    return {
        "kind_" if field.name == "kind" else field.name: _shortened(item)
        for field in fields(value)
        if (item := getattr(value, field.name)) != field.default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if is_dataclass(value):
        # What came later is left out at its default, so that older lines keep their spelling.
        items = [(field, getattr(value, field.name)) for field in fields(value)]
        return {
            field.name: _plain(item)
            for field, item in items
            if not (field.metadata.get("is_later") and item == field.default)
        }
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _untagged(kinds: dict[str, type], data: dict[str, Any], what: str) -> Any:
    cls = kinds.get(data.get("kind", ""))
    if cls is None:
        raise LineError(f"its {what} is of kind {data.get('kind')!r}; known: {', '.join(kinds)}")
    content = {key: item for key, item in data.items() if key != "kind"}
    if "kind_" in content:
        content["kind"] = content.pop("kind_")
    try:
        value = _adapter(cls).validate_python(content)
    except (ValidationError, TypeError) as err:
        reason = err.errors()[0]["msg"] if isinstance(err, ValidationError) else str(err)
        raise LineError(f"its {what} is not one of this version: {reason}") from None
    # Left-over keys and values of another type are let through above, and show here.
    if canonical(_tagged(kinds, value)) != canonical(data):
        raise LineError(f"its {what} is not one of this version: its fields differ")
    return value


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
