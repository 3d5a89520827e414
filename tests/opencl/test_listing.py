"""Which OpenCL devices there are: here, and on boards."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.rpc.processes import AgentProcess, TrackerProcess
from tvm_mobilenet.boards.archive import AGENT
from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.opencl.building import LIBRARY
from tvm_mobilenet.opencl.listing import list_opencl_devices
from tvm_mobilenet.opencl.runtime import describe
from tvm_mobilenet.rpc.address import parse_address
from tvm_mobilenet.rpc.devices import list_devices
from tvm_mobilenet.rpc.status import AgentStatus, agent_status

pytestmark = pytest.mark.opencl


def status_of(agent: AgentProcess) -> AgentStatus:
    """Return what an agent says of itself once it has looked for devices."""
    end = time.monotonic() + 30
    while True:
        status = agent_status(parse_address(agent.address, "device"))
        if status.opencl is not None or time.monotonic() > end:
            return status
        time.sleep(0.1)


def crashing_library(folder: Path, body: str) -> None:
    """Put a side library into an agent's folder that does that when it is asked for devices."""
    source = folder / "describe.c"
    source.write_text(
        "#include <stddef.h>\n#include <unistd.h>\n#include <tvm/ffi/c_api.h>\n"
        "static int describe(void* self, const TVMFFIAny* args, int32_t n, TVMFFIAny* result) {\n"
        f"  (void)self, (void)args, (void)n, (void)result; {body} return 0;\n}}\n"
        "__attribute__((constructor)) static void add(void) {\n"
        '  TVMFFIByteArray name = {"tvm_mobilenet.opencl.describe", 29};\n'
        "  TVMFFIObjectHandle function;\n"
        "  if (TVMFFIFunctionCreate(NULL, describe, NULL, &function) == 0)\n"
        "    TVMFFIFunctionSetGlobal(&name, function, 1);\n}\n"
    )
    import tvm_ffi

    include = Path(tvm_ffi.__file__).parent / "include"
    library = folder / "sidelibs" / LIBRARY
    command = ["cc", "-shared", "-fPIC", "-isystem", include, source, "-o", library]
    subprocess.run(list(map(str, command)), check=True)


def test_what_is_here_is_what_the_runtime_finds(device):
    assert list_opencl_devices().devices == describe().devices


def test_a_driver_that_crashes_or_hangs_costs_a_line(device, monkeypatch, tmp_path: Path):
    python_here = sys.executable

    def python(code: str) -> str:
        """Return a program in place of Python's that does something else whatever it is given."""
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec {python_here} -c "{code}"\n')
        script.chmod(0o755)
        return str(script)

    monkeypatch.setattr(sys, "executable", python("import os; os.abort()"))
    with pytest.raises(DeviceError, match="a driver ended the process") as hit:
        list_opencl_devices()
    assert (hit.value.exit_code, "\n" in str(hit.value)) == (4, False)
    monkeypatch.setattr(sys, "executable", python("import time; time.sleep(30)"))
    with pytest.raises(DeviceError, match="did not say within 1 s"):
        list_opencl_devices(timeout_s=1)


def test_the_command_lists_them(cli, device):
    found = describe().devices[0]
    table = cli("devices")
    assert table.code == 0
    assert found.name.split()[0] in table.out
    assert cli("devices", "--json").json["devices"][0]["name"] == found.name
    assert "no tracker was named" in cli("devices", "--timeout-s", "3").fails(2)


def test_a_board_says_which_it_has(cli, agent_folder: Path, tmp_path: Path):
    name = describe().devices[0].name
    with closing(TrackerProcess(tmp_path)) as tracker:
        words = ("--tracker", tracker.address, "--key", "pi")
        with closing(AgentProcess(agent_folder / AGENT, tmp_path, *words)) as agent:
            facts = status_of(agent).opencl
            assert facts is not None
            assert facts.devices == describe().devices
            while not (entries := list_devices(tracker.address).devices):
                time.sleep(0.1)
            assert entries[0].opencl == facts
            assert name.split()[0] in cli("devices", "--tracker", tracker.address).out


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("*(volatile int*)8 = 1;", "the driver ends the process that asks"),
        pytest.param(  # the agent waits for 15 s
            "for (;;) sleep(1);",
            "the driver does not say what there is in time",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_boards_driver_may_crash_or_hang(agent_folder: Path, tmp_path: Path, body, says):
    folder = shutil.copytree(agent_folder, tmp_path / "board")
    crashing_library(folder, body)
    with closing(AgentProcess(folder / AGENT, tmp_path)) as agent:
        facts = status_of(agent).opencl
        assert facts is not None
        assert facts.devices == ()
        assert facts.reason is not None
        assert says in facts.reason
        assert "listening" in agent.text()


def test_a_board_without_the_runtime_says_nothing(agent_folder: Path, tmp_path: Path):
    folder = shutil.copytree(agent_folder, tmp_path / "board")
    (folder / "sidelibs" / LIBRARY).unlink()
    with closing(AgentProcess(folder / AGENT, tmp_path)) as agent:
        assert agent_status(parse_address(agent.address, "device")).opencl is None
