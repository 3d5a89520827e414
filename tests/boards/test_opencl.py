"""The OpenCL runtime built for an Arm board, and run on an emulated one."""

from __future__ import annotations

import shutil

import pytest

from tvm_mobilenet.boards.emulator import start_board, stop_board
from tvm_mobilenet.elf import library_machine, required_versions
from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.opencl.building import opencl_runtime
from tvm_mobilenet.opencl.facts import OpenCLFacts
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.targets import load_target

pytestmark = [pytest.mark.arm, pytest.mark.opencl, pytest.mark.slow]


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
