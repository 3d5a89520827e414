from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import _logging_as_it_was, cli  # noqa: F401 - fixtures
from tests.rpc.processes import AgentProcess
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.boards.archive import AGENT


@pytest.fixture(scope="session")
def no_programs_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep built programs of these tests apart from the user's."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_MOBILENET_OPENCL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def runtime() -> None:
    """Load the OpenCL runtime, built if need be; skip where it cannot be built."""
    from tvm_mobilenet.opencl.building import missing_for_this_machine
    from tvm_mobilenet.opencl.runtime import ensure_runtime

    missing = missing_for_this_machine()
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    ensure_runtime()


@pytest.fixture(scope="session")
def device(runtime: None, no_programs_of_the_user: Path) -> Any:
    """TVM's object for the first OpenCL device; skip where there is none."""
    import tvm

    from tvm_mobilenet.opencl.runtime import describe

    facts = describe()
    if not facts.devices:
        pytest.skip(f"no OpenCL device: {facts.reason}")
    return tvm.opencl(0)


@pytest.fixture(scope="session")
def colour(colour_onnx: Path, device: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The small network of `colour_onnx` for any OpenCL device; look, do not touch."""
    from tests.opencl.stock import compile_stock
    from tvm_mobilenet.targets import load_target

    out = tmp_path_factory.mktemp("opencl") / "colour"
    return compile_stock(colour_onnx, load_target("opencl-generic"), out)


@pytest.fixture(scope="session")
def agent_folder(device: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes to a board with an OpenCL device, made for this machine."""
    from tvm_mobilenet.boards.archive import install_board
    from tvm_mobilenet.targets import load_target

    return install_board(
        load_target("opencl-generic"), tmp_path_factory.mktemp("agent") / "board"
    ).parent


@pytest.fixture(scope="session")
def opencl_agent(
    agent_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProcess]:
    """A board with an OpenCL device: this machine, behind the board agent."""
    with closing(AgentProcess(agent_folder / AGENT, tmp_path_factory.mktemp("board"))) as agent:
        yield agent
