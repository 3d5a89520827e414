"""What the processor can do at all: the yardstick beside the engines."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.absence import EngineUnavailableError
from benchmarks.engine import Anywhere, Job

__all__ = ["Peak"]

_PEAK_SOURCE = """
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float v __attribute__((vector_size(BYTES)));
/* Twelve chains of fused multiply-adds: more than latency times issue width anywhere, and few
   enough for sixteen registers. Returns the floating-point operations done. */
double peak(long rounds, float *sink) {
  v a[12], b = {0}, c = {0};
  b += 0.999f; c += 1e-3f;
  for (int i = 0; i < 12; ++i) { v z = {0}; a[i] = z + (float)i; }
  for (long r = 0; r < rounds; ++r)
    for (int i = 0; i < 12; ++i) a[i] = a[i] * b + c;
  v s = {0};
  for (int i = 0; i < 12; ++i) s += a[i];
  *sink = s[0];
  return 2.0 * 12.0 * (double)rounds * (BYTES / sizeof(float));
}
"""


class Peak(Anywhere):
    """No engine: the multiply-adds a core can do at all, measured in the same rounds.

    `flop` is what one `infer` computes. The share of the peak in the table is the model's own
    operations per second over this.
    """

    version = ""
    note = "fused multiply-adds from registers, no memory"

    def __init__(self, job: Job) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise EngineUnavailableError("no C compiler for the peak kernel")
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "peak.c", Path(folder) / "peak.so"
            source.write_text(_PEAK_SOURCE, encoding="utf-8")
            flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
            done = subprocess.run(
                [compiler, *flags, str(source), "-o", str(library)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise EngineUnavailableError(f"peak kernel: {done.stderr.strip().splitlines()[-1]}")
            self._peak = ctypes.CDLL(str(library)).peak
        self._peak.restype = ctypes.c_double
        self._peak.argtypes = [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]
        self._threads = job.threads
        self.flop = 0.0

    def _one_core(self, _: int) -> float:
        sink = ctypes.c_float()
        return float(self._peak(2_000_000, ctypes.byref(sink)))

    def infer(self) -> None:
        """Keep every thread multiplying for a while."""
        # ctypes lets go of the interpreter's lock, so the threads do run side by side. They are
        # started anew each time: 0.1 ms beside the several that the kernel takes.
        with ThreadPoolExecutor(self._threads) as pool:
            self.flop = sum(pool.map(self._one_core, range(self._threads)))

    def outputs(self) -> list[np.ndarray]:
        """Return the floating-point operations of one `infer`."""
        return [np.array([self.flop])]
