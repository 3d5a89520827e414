"""What is known of a GPU: the figures that OpenCL schedules are computed from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Operator = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]

__all__ = ["Architecture", "Gpu"]

Architecture = Literal["midgard", "bifrost", "valhall", "generic"]


class Gpu(BaseModel):
    """An OpenCL device. Every figure has a source in the target's `gpu_sources`.

    Registers are counted in 32 bits, whatever the architecture calls a register: one of Midgard's
    128-bit registers is four.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """The vendor's name, with the number of cores: `Mali-T860 MP4`."""
    architecture: Architecture
    cores: int = Field(ge=1, le=1024)
    """Shader cores, OpenCL's compute units."""
    vector_bits: int = Field(ge=32, le=1024, multiple_of=32)
    """Widest load or store of one work-item that is one instruction."""
    alu_vector_bits: int = Field(ge=32, le=1024, multiple_of=32)
    """What one arithmetic instruction of one work-item takes: 128 on Midgard, 32 where a warp of
    work-items is the vector."""
    occupancy_registers: int = Field(ge=4, le=256)
    """Registers up to which a core holds as many threads as it can; with more, half as many."""
    most_registers: int = Field(ge=8, le=512)
    """Registers beyond which values are spilled to memory."""
    threads_per_core: int = Field(ge=1)
    """Work-items that a core holds while they use few registers."""
    warp: int = Field(ge=1, le=128)
    """Neighbouring work-items that run in lock-step; 1 where each has a program counter."""
    max_work_group: int = Field(ge=1, le=4096)
    """Most work-items of a work-group, at few registers."""
    local_kib: int = Field(ge=0)
    """Local memory of a work-group."""
    has_local_memory: bool = False
    """Whether local memory is faster than global memory. On a Mali it lies in it."""
    has_fp16: bool
    """Whether the device has `cl_khr_fp16`."""
    has_images: bool
    """Whether it reads and writes images."""
    fma_per_core: int = Field(ge=1)
    """Multiply-adds on float32 that a core starts per cycle; twice that on float16."""
    bandwidth_gbs: float = Field(gt=0)
    """Peak bandwidth of its memory, 1e9 bytes a second; for estimates only."""
    freq_mhz: int = Field(ge=1)
    """Highest clock, for estimates only."""
    on_cpu: tuple[Operator, ...] = ()
    """What the processor beside it computes: `dense`, `pool` (global), or an operator that no
    kernel family serves, by TVM's name (`softmax`)."""

    def lanes(self, dtype: str) -> int:
        """Return how many values of `dtype` one load takes, at most 16 as OpenCL has them."""
        return min(16, self.vector_bits // {"float32": 32, "float16": 16}[dtype])

    @property
    def peak_gflops(self) -> float:
        """Multiply-adds on float32, each counted as two operations, in 1e9 a second."""
        return 2 * self.fma_per_core * self.cores * self.freq_mhz / 1e3
