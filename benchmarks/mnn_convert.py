"""From ONNX to MNN's format, with the converter that MNN's wheel carries.

Never `MNN.tools` or the `mnnconvert` command: on import they run `pip install` on whatever Python
comes first on the PATH, and they report what was converted to a log service. The converter itself
is a plain extension module beside the package, `_tools`; it ends its process where it meets what it
does not know, so it gets one of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.absence import EngineUnavailableError

__all__ = ["convert_mnn", "mnn_tool"]

_LIMIT_S = 600


def convert_mnn(onnx: Path, output: Path, *, site: Path | None = None) -> Path:
    """Convert a float32 model; `site` is a folder with MNN's wheel, if it is not installed.

    Raises:
        EngineUnavailableError: with the converter's last words.
    """
    flags = ["-f", "ONNX", "--modelFile", str(onnx), "--MNNModel", str(output)]
    said = mnn_tool("mnnconvert", [["mnnconvert", *flags, "--bizCode", "benchmark"]], site=site)
    if not output.is_file():
        raise EngineUnavailableError(f"MNN's converter wrote no model: {said}")
    return output


def mnn_tool(name: str, arguments: Sequence[object], *, site: Path | None) -> str:
    """Call a function of MNN's tools in a process of its own; return its last line of output."""
    program = f"import _tools; _tools.{name}(*{list(arguments)!r})"
    result = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=_LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(site or "")},
    )
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    return lines[-1] if lines else f"it said nothing, exit code {result.returncode}"
