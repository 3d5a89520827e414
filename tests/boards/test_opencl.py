"""The OpenCL runtime built for an Arm board, and run on an emulated one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvm_mobilenet.boards.emulator import start_board, stop_board
from tvm_mobilenet.boards.registry import Board
from tvm_mobilenet.elf import library_machine, required_versions
from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.opencl.building import opencl_runtime
from tvm_mobilenet.opencl.facts import OpenCLFacts
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.verify import verify
from tvm_mobilenet.workflow import compile_model

pytestmark = [pytest.mark.arm, pytest.mark.opencl, pytest.mark.slow]


ROOT = Path(__file__).parents[2]


@pytest.fixture
def board_with_pocl(tmp_path: Path, emulator: None, own_boards: Path) -> Iterator[Board]:
    """An emulated board whose OpenCL device is PoCL for AArch64; see `make opencl-arm`."""
    folder = Path(os.environ.get("TVM_MOBILENET_TEST_POCL_ARM64", ROOT / "build/pocl-arm64"))
    if not (folder / "vendors/pocl.icd").is_file():
        pytest.skip("there is no PoCL for AArch64 here; see `make opencl-arm`")
    libraries = [folder / "usr/lib/aarch64-linux-gnu", folder / "lib/aarch64-linux-gnu"]
    environment = {
        # The emulator's own loader passes over libraries of another architecture.
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "OCL_ICD_VENDORS": str(folder / "vendors"),
        "POCL_CACHE_DIR": str(tmp_path / "pocl"),
        "TVM_MOBILENET_OPENCL_CACHE": str(tmp_path / "programs"),
    }
    board = start_board(load_target("rk3399-mali"), environment=environment)
    try:
        yield board
    finally:
        stop_board(board)


@pytest.fixture(autouse=True)
def cross_compiler() -> None:
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("not installed here: g++-aarch64-linux-gnu")


def test_it_asks_for_no_newer_system_than_tvm_does():
    target = load_target("rk3399-mali")
    library = opencl_runtime(target)
    assert library_machine(library) == "aarch64"
    versions = required_versions(library)
    # What TVM's own wheels are content with; glibc 2.28 is Debian 10's, with libstdc++ of GCC 8.
    assert versions["GLIBC"] <= tuple(map(int, target.link.glibc.split(".")))
    assert versions["GLIBCXX"] <= (3, 4, 22)
    assert versions["CXXABI"] <= (1, 3, 11)


@pytest.mark.usefixtures("emulator", "own_boards")
def test_a_board_without_opencl_says_so():
    board = start_board(load_target("rk3399-mali"))
    try:
        session = connect(board.address).session()
        describe = session.remote.get_function("tvm_mobilenet.opencl.describe")
        facts = OpenCLFacts.of_json(session.call("OpenCL", describe))
        assert facts.devices == ()
        assert facts.library is None
        assert facts.reason is not None
        assert facts.reason.startswith("no OpenCL library was found (tried libOpenCL.so.1, ")
        # The error is thrown out of C++, through TVM's, and comes back as a line.
        with pytest.raises(DeviceError, match="OpenCL: no OpenCL library was found") as hit:
            session.call("OpenCL", session.function("use_opencl"), 0)
        assert "\n" not in str(hit.value)
        assert session.call("facts", session.function("facts"))  # the session goes on
        session.close()
    finally:
        stop_board(board)


def test_a_model_runs_on_an_emulated_boards_opencl(
    board_with_pocl: Board, colour_onnx: Path, tmp_path: Path
):
    device = connect(board_with_pocl.address, timeout_s=300)
    session = device.session()
    facts = session.opencl_facts()
    session.close()
    assert facts is not None
    assert [one.kind for one in facts.devices] == ["cpu"], facts.reason
    artifact = compile_model(colour_onnx, target="rk3399-mali", out=tmp_path / "model")
    report = verify(artifact.path, inputs=1, drift=True, device=device)
    assert all(compared.relative_l2 <= 1e-5 for compared in report.comparisons)
    assert report.drift is not None
    assert report.drift.first_departed is None
    (inputs,) = seeded(artifact.manifest, 1)
    with device.open(artifact, 1) as executor:
        assert (executor.layer_times_ms(inputs, 1) > 0).all()


def test_an_emulated_boards_opencl_is_searched_on(
    board_with_pocl: Board, colour_onnx: Path, tmp_path: Path
):
    report = tune_model(
        colour_onnx,
        target="rk3399-mali",
        device=connect(board_with_pocl.address, timeout_s=300),
        trials=3,
        most_tasks=1,
        logs=tmp_path,
        builders=1,
    )
    assert report.trials == 3
    assert report.tasks[0].best is not None
