"""What the tests of boards share: trackers, agents and stock servers that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.rpc.processes import AgentProcess, BadLink, StockServer, StockTracker, TrackerProcess
from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.errors import ToolchainError


@pytest.fixture
def artifact(colour_dir: Path) -> Artifact:
    return open_artifact(colour_dir)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "auth.key"
    path.write_text("  correct horse battery staple\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start_tracker(cleanup: ExitStack, tmp_path: Path) -> Callable[..., TrackerProcess]:
    def start(**options) -> TrackerProcess:
        return cleanup.enter_context(closing(TrackerProcess(tmp_path, **options)))

    return start


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The board agent with all that goes to a board, built for this machine."""
    from tvm_mobilenet.boards.archive import install_board
    from tvm_mobilenet.targets import load_target

    try:
        return install_board(load_target("host"), tmp_path_factory.mktemp("agent") / "board")
    except ToolchainError as err:
        pytest.skip(f"the agent cannot be built here: {err}")


@pytest.fixture
def start_agent(
    cleanup: ExitStack, agent_program: Path, tmp_path: Path
) -> Callable[..., AgentProcess]:
    def start(*options: str, **more) -> AgentProcess:
        found = AgentProcess(agent_program, tmp_path, *map(str, options), **more)
        return cleanup.enter_context(closing(found))

    return start


@pytest.fixture
def agent(start_agent) -> AgentProcess:
    return start_agent()


@pytest.fixture
def bad_link(cleanup: ExitStack, tmp_path: Path) -> Callable[[str], BadLink]:
    return lambda target: cleanup.enter_context(closing(BadLink(tmp_path, target)))


@pytest.fixture(scope="module")
def stock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    """TVM's own server, with no tracker; it serves one session after the other."""
    with closing(StockServer(tmp_path_factory.mktemp("stock"))) as server:
        yield server


@pytest.fixture
def start_stock_server(cleanup: ExitStack, tmp_path: Path) -> Callable[..., StockServer]:
    return lambda *options: cleanup.enter_context(closing(StockServer(tmp_path, *options)))


@pytest.fixture
def stock_tracker(cleanup: ExitStack, tmp_path: Path) -> StockTracker:
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    return cleanup.enter_context(closing(StockTracker(tmp_path)))
