"""Where a GPU kernel's sums begin, at the bias, and where they end, in the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm_mobilenet.schedule.emit import Expr, KernelWriter, apply_epilogue, constant
from tvm_mobilenet.schedule.mali.emit import Argument, cast
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, MatmulWorkload

__all__ = ["TileOutput"]


class _Plan(Protocol):
    @property
    def accumulate(self) -> str: ...

    @property
    def lanes(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class TileOutput:
    """Vectors of sums and what becomes of them; the same for every kernel that multiplies."""

    epilogue: Epilogue
    dtype: str
    """Of the tensors."""
    accumulate: str
    """Of the sums and the bias."""
    lanes: int

    @classmethod
    def of(cls, workload: ConvWorkload | MatmulWorkload, plan: _Plan) -> TileOutput:
        """Return what a plan makes of a workload's sums."""
        return cls(
            epilogue=workload.epilogue,
            dtype=workload.dtype,
            accumulate=plan.accumulate,
            lanes=plan.lanes,
        )

    def arguments(self, channels: int, y_shape: Sequence[int]) -> list[Argument]:
        """Return the kernel's last arguments: [bias][, residual], y."""
        found = []
        if self.epilogue.bias:
            found.append(Argument("bias", (channels,), self.accumulate))
        if self.epilogue.residual:
            found.append(Argument("residual", y_shape, self.dtype))
        return [*found, Argument("y", y_shape, self.dtype)]

    def begin(self, kernel: KernelWriter, channel: Expr) -> Expr:
        """Return what a vector of sums begins at, for output channels from `channel` on."""
        bias = kernel.get("bias")
        if bias:
            return bias.load(channel, self.lanes)
        return constant(0.0, self.accumulate, self.lanes)

    def store(self, kernel: KernelWriter, index: Expr, total: Expr) -> None:
        """Apply the epilogue to a vector of sums and store it at `index` of the output."""
        residual = kernel.get("residual")
        value = apply_epilogue(
            total,
            self.epilogue,
            self.lanes,
            self.accumulate,
            cast(residual.load(index, self.lanes), self.accumulate, self.dtype, self.lanes)
            if residual
            else None,
        )
        value = cast(value, self.dtype, self.accumulate, self.lanes)
        kernel["y"].store(index, value, self.lanes)
