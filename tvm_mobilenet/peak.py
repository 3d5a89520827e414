"""How many floating-point operations a second this machine can do: measured, not looked up.

A kernel that does nothing but multiply-adds on registers, built by the same code generator as the
models. It is the roof that a layer's speed is compared with.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.compute_thread import ComputeThread

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["Peak", "measure_peak"]

_FLOP_PER_RUN = 40_000_000
"""Of one thread: about a millisecond at 40 GFLOP/s."""
_DURATION_S = 0.25
"""Long enough that whatever else runs lets go of each core for some of the runs."""
_MAX_CHAINS = 24
"""Independent chains of multiply-adds. Latency times units is 8 on today's cores (4 cycles, 2 units
on Zen 4's and Golden Cove's 256-bit side; 4 by 2 on Cortex-A76); more than that hides it."""
_SPARE_REGISTERS = 4


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The measured roof."""

    gflops: float
    """Float32 operations a second in billions, a multiply-add counted as two: the best of the runs.
    """
    threads: int
    lanes: int
    """Values in a vector."""
    chains: int
    """Accumulators that the kernel keeps in registers; 0 where no kernel was run."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def measure_peak(target: TargetSpec, threads: int) -> Peak:
    """Measure the peak of `threads` threads with `target`'s vectors; kept for the process.

    Needs TVM's compiler. `target` must be one that this machine can run.
    """
    return _measured(target.model_dump_json(by_alias=True), threads)


@functools.cache
def _measured(target_json: str, threads: int) -> Peak:
    from tvm_mobilenet.targets import TargetSpec

    target = TargetSpec.model_validate_json(target_json)
    lanes = target.cpu.lanes("float32")
    chains = min(_MAX_CHAINS, target.cpu.vector_registers - _SPARE_REGISTERS)
    rounds = _FLOP_PER_RUN // (2 * lanes * chains)
    kernel = _build(target, threads, lanes, chains, rounds)
    with ComputeThread(threads) as thread:
        best_s = thread.call(_best_time, kernel, threads, lanes, chains)
    gflops = 2 * lanes * chains * rounds * threads / best_s / 1e9
    return Peak(gflops=gflops, threads=threads, lanes=lanes, chains=chains)


def _build(target: TargetSpec, threads: int, lanes: int, chains: int, rounds: int) -> Any:
    """Write y[i] = (...((x[i] * scale + shift) * scale + shift)...), `rounds` times over."""
    from tvm_mobilenet._tvm import IRModule, T, tvm
    from tvm_mobilenet.schedule.emit import KernelWriter, Parameter, Registers, write_kernel

    def body(kernel: KernelWriter) -> None:
        with T.parallel(0, threads) as thread:
            values = Registers(chains, "float32", lanes)
            factors = Registers(2, "float32", lanes)
            factors[0] = kernel["x"].load(0, lanes)
            factors[1] = kernel["x"].load(lanes, lanes)
            for chain in range(chains):
                values[chain] = kernel["x"].load((2 + chain) * lanes, lanes)
            with T.serial(0, rounds):
                for chain in range(chains):
                    values[chain] = values[chain] * factors[0] + factors[1]
            for chain in range(chains):
                kernel["y"].store((thread * chains + chain) * lanes, values[chain], lanes)

    shapes = {"x": (2 + chains) * lanes, "y": threads * chains * lanes}
    function = write_kernel(
        "float32", [Parameter(name, (size,)) for name, size in shapes.items()], body
    )
    return tvm.compile(IRModule({"main": function}), target=target.tvm_target())


def _best_time(kernel: Any, threads: int, lanes: int, chains: int) -> float:
    import tvm

    # x -> 0.999 x + 0.001 tends to 1: neither subnormal nor infinite, whatever the rounds.
    x = np.concatenate([np.full(lanes, 0.999), np.full(lanes, 0.001), np.ones(chains * lanes)])
    source = tvm.runtime.tensor(x.astype(np.float32))
    result = tvm.runtime.tensor(np.zeros(threads * chains * lanes, np.float32))
    run = kernel["main"]
    times: list[float] = []
    end = time.perf_counter() + _DURATION_S
    while time.perf_counter() < end or not times:
        begin = time.perf_counter()
        run(source, result)
        times.append(time.perf_counter() - begin)
    return min(times)
