"""How the runtime comes into a process, and what is said where there is nothing to run on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tvm_mobilenet.artifact import Artifact

pytestmark = pytest.mark.opencl

ROOT = Path(__file__).parents[2]


def python(code: str, *, path: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), **variables}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_an_installed_package_brings_opencl_to_any_tvm_program(device, tmp_path: Path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    done = python(
        "import tvm; print(tvm.opencl(0).exist)",
        path=tmp_path / "installed",
        TVM_USE_RUNTIME_LIB="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]
    assert "Failed to autoload" not in done.stderr


def test_a_runtime_that_is_there_already_stays_in_charge(device):
    code = (
        "import tvm_ffi, ctypes;"
        "tvm_ffi.register_global_func('device_api.opencl', lambda: None, override=True);"
        "from tvm_mobilenet.opencl.building import opencl_runtime;"
        "from tvm_mobilenet.opencl.runtime import ensure_runtime;"
        "ensure_runtime();"
        "ctypes.CDLL(str(opencl_runtime()));"  # even then: a second registration would abort
        "print(tvm_ffi.get_global_func('tvm_mobilenet.opencl.describe', allow_missing=True))"
    )
    done = python(code, TVM_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None"]


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("/nowhere/libOpenCL.so", "TVM_MOBILENET_OPENCL_LIBRARY names /nowhere/libOpenCL.so"),
        ("libm.so.6", "TVM_MOBILENET_OPENCL_LIBRARY names libm.so.6"),
    ],
)
def test_no_driver_is_one_line_and_exit_code_4(colour: Artifact, library: str, reason: str):
    command = [sys.executable, "-m", "tvm_mobilenet", "measure", str(colour.path), "--repeat", "1"]
    environment = {**os.environ, "TVM_MOBILENET_OPENCL_LIBRARY": library}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert reason in line


def test_no_device_is_said(device, tmp_path: Path):
    vendors = tmp_path / "vendors"
    vendors.mkdir()
    code = "from tvm_mobilenet.opencl.runtime import describe; print(describe().reason)"
    done = python(code, OCL_ICD_VENDORS=str(vendors))
    assert done.returncode == 0, done.stderr
    assert "it knows no platform" in done.stdout
