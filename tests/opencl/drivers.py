"""OpenCL drivers beside the machine's own, and the suites run once more on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "intel_driver", "run_python", "run_suites", "vendors"]

ROOT = Path(__file__).parents[2]
_SYSTEM_VENDORS = Path("/etc/OpenCL/vendors")


def intel_driver() -> Path | None:
    """Return Intel's driver for processors, as `make opencl-intel` brings it; None where it is not.

    It is another vendor's compiler and runtime than PoCL, and has half precision on any processor.
    """
    prefix = os.environ.get("TVM_MOBILENET_TEST_INTEL", ROOT / "build/opencl-intel")
    found = sorted(Path(prefix, "lib").resolve().glob("libintelocl.so.*[0-9]"))
    return found[0] if found else None


def vendors(folder: Path, *, with_own: bool = True, with_intel: bool = False) -> dict[str, str]:
    """Return an environment in which the loader finds the machine's own drivers, Intel's, or both.

    Args:
        folder: where the list of drivers is made.
        with_own: those of this machine.
        with_intel: Intel's, which has to be installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"OCL_ICD_VENDORS": str(folder)}
    if with_own:
        for path in _SYSTEM_VENDORS.glob("*.icd"):
            (folder / path.name).write_text(path.read_text())
    if with_intel:
        driver = intel_driver()
        assert driver is not None
        (folder / "intel.icd").write_text(f"{driver}\n")
        # Where it looks for the libraries that came with it.
        environment["LD_LIBRARY_PATH"] = str(driver.parent)
    return environment


def run_python(code: str, **environment: str) -> str:
    """Run a program in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run_suites(*names: str, **environment: str) -> str:
    """Run test files of this folder in a process of their own; returns what was said."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", *(str(ROOT / f"tests/opencl/test_{name}.py") for name in names)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    return done.stdout + done.stderr
